// SPDX-License-Identifier: Apache-2.0
// Strips of VL columns, and the transforms of plan.h that fit the registers: from load to store without a stop.
#pragma once

#include "dct_odd.h"

#include "../dct_small.h"

namespace softdiff::SOFTDIFF_ISA {

// A strip in cache. `from(i)` is what begins i places further on.
struct Strip {
  V* x;
  SD_INLINE V operator()(int i) const { return x[i]; }
  SD_INLINE void operator()(int i, V v) const { x[i] = v; }
  SD_INLINE Strip from(int i) const { return {x + i}; }
};

// Places that fit the registers together with what a butterfly needs.
constexpr int kLeaf = VL == 16 ? 16 : 8;

template <int N, void (*F)(V*), class In, class Out>
SD_INLINE void leaf(In in, Out out) {
  V r[N];
  SD_UNROLL
  for (int i = 0; i < N; ++i) r[i] = in(i);
  F(r);
  SD_UNROLL
  for (int i = 0; i < N; ++i) out(i, r[i]);
}

// The four transforms for n = 1, 2, 4, 7, 8 and kLeaf; false for other n.
template <bool Four, bool Transposed, class In, class Out>
SD_INLINE bool small(In in, Out out, const Level* level) {
#define SOFTDIFF_CASE(N)                                                  \
  case N:                                                                 \
    if constexpr (Four) {                                                 \
      if constexpr (Transposed) leaf<N, Unrolled<V, N>::four_t>(in, out); \
      if constexpr (!Transposed) leaf<N, Unrolled<V, N>::four>(in, out);  \
    } else {                                                              \
      if constexpr (Transposed) leaf<N, Unrolled<V, N>::two_t>(in, out);  \
      if constexpr (!Transposed) leaf<N, Unrolled<V, N>::two>(in, out);   \
    }                                                                     \
    return true;
  switch (level->n) {
    SOFTDIFF_CASE(1)
    SOFTDIFF_CASE(2)
    SOFTDIFF_CASE(4)
    SOFTDIFF_CASE(7)
    SOFTDIFF_CASE(8)
#if SOFTDIFF_VL == 16
    SOFTDIFF_CASE(16)
#endif
    default: return false;
  }
#undef SOFTDIFF_CASE
}

}  // namespace softdiff::SOFTDIFF_ISA
