// SPDX-License-Identifier: Apache-2.0
// A strip's spectrum by the mask that a sample's gains make.
#pragma once

#include "gains.h"
#include "products.h"

namespace softdiff::cuda {

// Returns the energy of what the mask leaves, where the op wants it. `m` has the gains and values, `role` the strip's
// place in its quadrant.
template <bool kTwoTerms, class Op, class Memory, class Role, int kRows, int kTiles>
SOFTDIFF_DEVICE float mask_strip(const Op& op, const Memory& m, const Role& role, float factor,
                                 Strip<kRows, kTiles>& strip) {
  const float constant = mask_constant(*m.values);
  const int across = role.parity_w * m.gains.half_w;
  float h[kTwoTerms ? 2 : 1][kRows][2];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = role.parity_h * m.gains.half_h + role.row(r, 2 * half);
      h[0][r][half] = m.gains.h[0][k];
      if constexpr (kTwoTerms) h[1][r][half] = m.gains.h[1][k];
    }
  // Column by column: the gains of all columns at once would take registers that are not there.
  float energy = 0.0f;
#pragma unroll
  for (int n = 0; n < 4 * kTiles; ++n) {
    const int l = across + role.column(n / 2, n % 2);
    const float w0 = m.gains.w[0][l], w1 = kTwoTerms ? m.gains.w[1][l] : 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float mask = fmaf(h[0][r][half], w0, constant);
        if constexpr (kTwoTerms) mask = fmaf(h[1][r][half], w1, mask);
        float& u = strip.at[r][n / 2][2 * half + n % 2];
        u = op.apply(u * factor, mask, energy);
      }
  }
  return energy;
}

}  // namespace softdiff::cuda
