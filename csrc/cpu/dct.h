// SPDX-License-Identifier: Apache-2.0
// The fast DCT of plan.h on VL columns at once, from where the caller has them to where it wants them.
//
// `in(i)` gives the vector at place i, `out(i, v)` takes it: rows of a plane, a strip in cache, or what a mask
// makes of it. Reading and writing is what binds here, not arithmetic: a store a cycle (AVX2) or two (AVX-512)
// against four operations, so that a vector goes through memory once or twice and not between all stages.
// About 1.7 log2 n operations an element, against n for a dense product and n/2 for a folded one.
#pragma once

#include "dct_strip.h"

namespace softdiff::SOFTDIFF_ISA {

template <class In, class Out>
void two(In in, Out out, V* work, const Level* level);

// The end of a DCT-IV of n: two DCT-II of n / 2, of what lies at `x`, and the butterfly after them. `work`: 3n / 2.
template <int M, class Out>
SD_INLINE void join(V* x, V* work, Out out, const Level* level) {
  const int h = level->n / 2;
  if constexpr (M == kLeaf) {
    leaf<kLeaf, Unrolled<V, kLeaf>::two>(Strip{x}, Strip{work});
    V t[kLeaf];
#pragma GCC unroll 16
    for (int i = 0; i < kLeaf; ++i) t[i] = x[kLeaf + i];
    Unrolled<V, kLeaf>::two(t);
    constexpr Places<kLeaf> place{};
    out(0, work[0]);
    out(kLeaf, t[0]);
#pragma GCC unroll 16
    for (int k = 1; k < kLeaf; ++k) {
      const int u = place.two[k], v = place.two[kLeaf - k];
      const V a = work[u], b = t[v];
      out(u, a - b);
      out(kLeaf + v, a + b);
    }
    return;
  }
  two(Strip{x}, Strip{work}, work + h, level->half);
  two(Strip{x + h}, Strip{x}, work + h, level->half);
  const int zero = level->zero;
  out(zero, work[zero]);
  out(h + zero, x[zero]);
  for (int k = 0; k < h - 1; ++k) {
    const int u = level->pairs[2 * k], t = level->pairs[2 * k + 1];
    const V a = work[u], b = x[t - h];
    out(u, a - b);
    out(t, a + b);
  }
}

// DCT-IV of what lies at `x`, which is overwritten. `work`: 2n vectors.
template <class Out>
__attribute__((noinline)) void four(V* x, Out out, V* work, const Level* level) {
  if (small<true, false>(Strip{x}, out, level)) return;
  const int n = level->n, h = n / 2;
  if (n % 2 == 1) {
    odd_four(x, work, work + n, level);
    for (int i = 0; i < n; ++i) out(i, work[i]);
    return;
  }
  const float* r = level->rotation;
  const auto turn = [&](int i, int parity) SD_LAMBDA {
    rotate(parity, r[2 * i], r[2 * i + 1], x[i], x[n - 1 - i], work[i], work[h + i]);
  };
  for (int i = 0; i + 1 < h; i += 2) turn(i, 0), turn(i + 1, 1);
  if (h % 2 == 1) turn(h - 1, 0);
  if (h == kLeaf) {
    join<kLeaf>(work, work + n, out, level);
  } else {
    join<0>(work, work + n, out, level);
  }
}

// `two` of n = 4m by two stages at once: what four transforms of m take, of which the last two belong to a DCT-IV.
// M: m where the compiler is to know it.
template <int M, class In, class Out>
SD_INLINE void two_by_four(In in, Out out, V* work, const Level* level) {
  const int m = M > 0 ? M : level->n / 4;
  const float* r = level->half->rotation;
  const auto stage = [&](int i, int parity) SD_LAMBDA {
    const V a = in(i), b = in(2 * m - 1 - i), c = in(2 * m + i), d = in(4 * m - 1 - i);
    const V p = a + d, q = b + c;
    work[i] = p + q;
    work[m + i] = p - q;
    rotate(parity, r[2 * i], r[2 * i + 1], a - d, b - c, work[2 * m + i], work[3 * m + i]);
  };
  for (int i = 0; i + 1 < m; i += 2) stage(i, 0), stage(i + 1, 1);
  if (m % 2 == 1) stage(m - 1, 0);
  V* spare = work + 4 * m;
  if constexpr (M == kLeaf) {
    leaf<M, Unrolled<V, M>::two>(Strip{work}, out);
    leaf<M, Unrolled<V, M>::four>(Strip{work + M}, out.from(M));
  } else {
    two(Strip{work}, out, spare, level->half->half);
    four(work + m, out.from(m), spare, level->half->half);
  }
  join<M>(work + 2 * m, spare, out.from(2 * m), level->half);
}

// out = R in, `out` elsewhere than `in`. `work`: 2n vectors.
template <class In, class Out>
__attribute__((noinline)) void two(In in, Out out, V* work, const Level* level) {
  if (small<false, false>(in, out, level)) return;
  const int n = level->n, h = n / 2;
  if (n % 2 == 1) {
    for (int i = 0; i < n; ++i) work[i] = in(i);
    odd_two(work, work + n, level);
    for (int i = 0; i < n; ++i) out(i, work[i]);
    return;
  }
  if (h == kLeaf) {
    // Each number is read once: it may be a difference of two, and have memory fetched for another.
    const auto sum = [&](int i) SD_LAMBDA {
      const V a = in(i), b = in(2 * kLeaf - 1 - i);
      work[i] = a - b;
      return a + b;
    };
    leaf<kLeaf, Unrolled<V, kLeaf>::two>(sum, out);
    leaf<kLeaf, Unrolled<V, kLeaf>::four>(Strip{work}, out.from(kLeaf));
    return;
  }
  if (n % 4 != 0) {
    for (int i = 0; i < h; ++i) {
      const V a = in(i), b = in(n - 1 - i);
      work[i] = a + b;
      work[h + i] = a - b;
    }
    two(Strip{work}, out, work + n, level->half);
    four(work + h, out.from(h), work + n, level->half);
    return;
  }
  if (h == 2 * kLeaf) {
    two_by_four<kLeaf>(in, out, work, level);
  } else {
    two_by_four<0>(in, out, work, level);
  }
}

}  // namespace softdiff::SOFTDIFF_ISA
