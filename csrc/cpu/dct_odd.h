// SPDX-License-Identifier: Apache-2.0
// The DCT of plan.h for odd lengths: dense products or chirps, the DCT-II folded into sums and differences.
#pragma once

#include "plan.h"
#include "simd.h"

namespace softdiff::SOFTDIFF_ISA {

template <int N>
SD_INLINE void dense_small(const float* m, const V* x, V* y) {
  V r[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) r[i] = x[i];
#pragma GCC unroll 8
  for (int k = 0; k < N; ++k) {
    V acc = r[0] * m[k * N];
#pragma GCC unroll 8
    for (int i = 1; i < N; ++i) acc += r[i] * m[k * N + i];
    y[k] = acc;
  }
}

// y = M x for a dense [n][n] matrix: the small ones from registers, larger ones eight rows at a time.
inline void dense(const float* m, int n, const V* x, V* y) {
  switch (n) {
    case 1: return dense_small<1>(m, x, y);
    case 2: return dense_small<2>(m, x, y);
    case 3: return dense_small<3>(m, x, y);
    case 4: return dense_small<4>(m, x, y);
    case 5: return dense_small<5>(m, x, y);
    case 7: return dense_small<7>(m, x, y);
    default: break;
  }
  int k = 0;
  for (; k + 8 <= n; k += 8) {
    V acc[8] = {};
    for (int i = 0; i < n; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) acc[j] += x[i] * m[(k + j) * n + i];
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) y[k + j] = acc[j];
  }
  for (; k < n; ++k) {
    V acc = {};
    for (int i = 0; i < n; ++i) acc += x[i] * m[k * n + i];
    y[k] = acc;
  }
}

// See plan.h; `in` and `out` are the chirp's, or change places in the transpose. In dct_chirp.h. `work`: 5 n vectors, n
// that of t.level.
void chirp(const Chirp& t, const float* in, const float* out, const V* x, V* y, V* work);

// The DCT-II's even frequencies come first, then the odd ones. `spare`: n vectors, and what a chirp needs.
inline void odd_two(V* x, V* spare, const Level* level) {
  const int n = level->n, sums = (n + 1) / 2, differences = n / 2;
  for (int i = 0; i < differences; ++i) {
    spare[i] = x[i] + x[n - 1 - i];
    spare[sums + i] = x[i] - x[n - 1 - i];
  }
  spare[differences] = x[differences];
  if (const Chirp* even = level->chirp2_even) {
    chirp(*even, even->in, even->out, spare, x, spare + n);
    chirp(*level->chirp2_odd, level->chirp2_odd->in, level->chirp2_odd->out, spare + sums, x + sums, spare + n);
    return;
  }
  dense(level->dense2_even, sums, spare, x);
  dense(level->dense2_odd, differences, spare + sums, x + sums);
}

inline void odd_two_t(V* x, V* spare, const Level* level) {
  const int n = level->n, sums = (n + 1) / 2, differences = n / 2;
  if (const Chirp* even = level->chirp2_even) {
    chirp(*even, even->out, even->in, x, spare, spare + n);
    chirp(*level->chirp2_odd, level->chirp2_odd->in, level->chirp2_odd->out, x + sums, spare + sums, spare + n);
  } else {
    dense(level->dense2_even_t, sums, x, spare);
    dense(level->dense2_odd, differences, x + sums, spare + sums);
  }
  for (int i = 0; i < differences; ++i) {
    x[i] = spare[i] + spare[sums + i];
    x[n - 1 - i] = spare[i] - spare[sums + i];
  }
  x[differences] = spare[differences];
}

// DCT-IV, symmetric; y elsewhere than x. `work`: what a chirp needs.
inline void odd_four(const V* x, V* y, V* work, const Level* level) {
  if (const Chirp* whole = level->chirp4) {
    chirp(*whole, whole->in, whole->out, x, y, work);
  } else {
    dense(level->dense4, level->n, x, y);
  }
}

}  // namespace softdiff::SOFTDIFF_ISA
