// SPDX-License-Identifier: Apache-2.0
// Long odd transforms as convolutions, by the fast transforms of other lengths: see Chirp in plan.h.
#pragma once

#include "dct.h"
#include "dct_transposed.h"

namespace softdiff::SOFTDIFF_ISA {

__attribute__((noinline)) inline void chirp(const Chirp& t, const float* in, const float* out, const V* x, V* y,
                                            V* work) {
  const Level* level = t.level;
  const int n = t.n, m = level->n;
  V *a = work, *b = work + m, *c = work + 2 * m, *spare = work + 3 * m;
  for (int i = 0; i < n; ++i) a[i] = x[i] * in[2 * i], b[i] = x[i] * in[2 * i + 1];
  for (int i = n; i < m; ++i) a[i] = b[i] = V{};
  two(Strip{a}, Strip{c}, spare, level);
  two(Strip{b}, Strip{a}, spare, level);
  for (int i = 0; i < m; ++i) {
    const V h = splat(t.gains[2 * i]), g = splat(t.gains[2 * i + 1]), p = c[i], q = a[i];
    c[i] = p * h + q * g;
    a[i] = p * g - q * h;
  }
  two_t(Strip{c}, Strip{b}, spare, level);
  two_t(Strip{a}, Strip{c}, spare, level);
  for (int i = 0; i < n; ++i) y[i] = b[i] * out[2 * i] + c[i] * out[2 * i + 1];
}

}  // namespace softdiff::SOFTDIFF_ISA
