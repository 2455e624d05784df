// SPDX-License-Identifier: Apache-2.0
// The transposes of the transforms in dct.h, stage by stage in the opposite order.
#pragma once

#include "dct_strip.h"

namespace softdiff::SOFTDIFF_ISA {

template <class In, class Out>
void two_t(In in, Out out, V* work, const Level* level);

// Transpose of `join`, into `x`. `work`: 2n.
template <int M, class In>
SD_INLINE void split(In in, V* x, V* work, const Level* level) {
  const int n = level->n, h = n / 2;
  if constexpr (M == kLeaf) {
    constexpr Mirror<kLeaf> mirror{};
    leaf<kLeaf, Unrolled<V, kLeaf>::two_t>(
        [&](int u) SD_LAMBDA { return u == 0 ? in(0) : in(u) + in(kLeaf + mirror.at[u]); }, Strip{x});
    leaf<kLeaf, Unrolled<V, kLeaf>::two_t>(
        [&](int v) SD_LAMBDA { return v == 0 ? in(kLeaf) : in(kLeaf + v) - in(mirror.at[v]); },
        Strip{x + kLeaf});
    return;
  }
  const int zero = level->zero;
  work[zero] = in(zero);
  work[h + zero] = in(h + zero);
  for (int k = 0; k < h - 1; ++k) {
    const int u = level->pairs[2 * k], t = level->pairs[2 * k + 1];
    const V a = in(u), b = in(t);
    work[u] = a + b;
    work[t] = b - a;
  }
  two_t(Strip{work}, Strip{x}, work + n, level->half);
  two_t(Strip{work + h}, Strip{x + h}, work + n, level->half);
}

// Transpose of DCT-IV, into `x`. `work`: 2n vectors.
template <class In>
__attribute__((noinline)) void four_t(In in, V* x, V* work, const Level* level) {
  if (small<true, true>(in, Strip{x}, level)) return;
  const int n = level->n, h = n / 2;
  if (n % 2 == 1) {
    for (int i = 0; i < n; ++i) work[i] = in(i);
    odd_four(work, x, work + n, level);
    return;
  }
  if (h == kLeaf) {
    split<kLeaf>(in, x, work, level);
  } else {
    split<0>(in, x, work, level);
  }
  const float* r = level->rotation;
  // Rotations i and j = h - 1 - i take and give the same four numbers.
  const auto turn = [&](int i, int parity, int other) SD_LAMBDA {
    const int j = h - 1 - i;
    const V a = x[i], b = x[h + i], c = x[j], d = x[h + j];
    rotate_t(parity, r[2 * i], r[2 * i + 1], a, b, x[i], x[n - 1 - i]);
    if (i != j) rotate_t(other, r[2 * j], r[2 * j + 1], c, d, x[j], x[n - 1 - j]);
  };
  const auto turns = [&](int odd) SD_LAMBDA {
    const int count = (h + 1) / 2;
    for (int i = 0; i + 1 < count; i += 2) turn(i, 0, 1 - odd), turn(i + 1, 1, odd);
    if (count % 2 == 1) turn(count - 1, 0, 1 - odd);
  };
  h % 2 == 1 ? turns(1) : turns(0);
}

// Transpose of `two_by_four`.
template <int M, class In, class Out>
SD_INLINE void two_t_by_four(In in, Out out, V* work, const Level* level) {
  const int m = M > 0 ? M : level->n / 4;
  V* spare = work + 4 * m;
  if constexpr (M == kLeaf) {
    leaf<M, Unrolled<V, M>::two_t>(in, Strip{work});
    leaf<M, Unrolled<V, M>::four_t>(in.from(M), Strip{work + M});
  } else {
    two_t(in, Strip{work}, spare, level->half->half);
    four_t(in.from(m), work + m, spare, level->half->half);
  }
  split<M>(in.from(2 * m), work + 2 * m, spare, level->half);
  const float* r = level->half->rotation;
  const auto stage = [&](int i, int parity) SD_LAMBDA {
    const V e = work[i], f = work[m + i];
    const V p = e + f, q = e - f;
    V s, t;
    rotate_t(parity, r[2 * i], r[2 * i + 1], work[2 * m + i], work[3 * m + i], s, t);
    out(i, p + s);
    out(4 * m - 1 - i, p - s);
    out(2 * m - 1 - i, q + t);
    out(2 * m + i, q - t);
  };
  for (int i = 0; i + 1 < m; i += 2) stage(i, 0), stage(i + 1, 1);
  if (m % 2 == 1) stage(m - 1, 0);
}

// out = R^T in; `out` may be where `in` is. `work`: 2n vectors.
template <class In, class Out>
__attribute__((noinline)) void two_t(In in, Out out, V* work, const Level* level) {
  if (small<false, true>(in, out, level)) return;
  const int n = level->n, h = n / 2;
  if (n % 2 == 1) {
    for (int i = 0; i < n; ++i) work[i] = in(i);
    odd_two_t(work, work + n, level);
    for (int i = 0; i < n; ++i) out(i, work[i]);
    return;
  }
  if (h == kLeaf) {
    leaf<kLeaf, Unrolled<V, kLeaf>::two_t>(in, Strip{work});
    V y[kLeaf];
#pragma GCC unroll 16
    for (int i = 0; i < kLeaf; ++i) y[i] = in(kLeaf + i);
    Unrolled<V, kLeaf>::four_t(y);
#pragma GCC unroll 16
    for (int i = 0; i < kLeaf; ++i) {
      out(i, work[i] + y[i]);
      out(2 * kLeaf - 1 - i, work[i] - y[i]);
    }
    return;
  }
  if (n % 4 != 0) {
    two_t(in, Strip{work}, work + n, level->half);
    four_t(in.from(h), work + h, work + n, level->half);
    for (int i = 0; i < h; ++i) {
      const V a = work[i], b = work[h + i];
      out(i, a + b);
      out(n - 1 - i, a - b);
    }
    return;
  }
  if (h == 2 * kLeaf) {
    two_t_by_four<kLeaf>(in, out, work, level);
  } else {
    two_t_by_four<0>(in, out, work, level);
  }
}

}  // namespace softdiff::SOFTDIFF_ISA
