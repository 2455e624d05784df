// SPDX-License-Identifier: Apache-2.0
// spectral_loss and its gradient.
#pragma once

#include "dct2.h"
#include "soft_score_loss.h"

namespace softdiff::SOFTDIFF_ISA {

inline void spectral_loss(const SpectralLossArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w,
                          void* scratch, bool) {
  Plane p = carve(1, scratch, plan_h, plan_w);
  const double weight = a.weight.at(b);
  const float factor = static_cast<float>(2.0 * weight * a.gradient_scale);
  set_offsets(p, p.h);
  difference_forward<true>(p, a, b, c);
  rows_transform(p, false);
  double energy = 0.0;
  for (int64_t i = 0; i < p.h; ++i) {
    float* u = p.s + i * p.stride;
    for (int64_t j = 0; j < p.w; j += kChunk) {
      const int64_t n = p.w - j < kChunk ? p.w - j : kChunk;
      const float* m = read_row(a.mask, row_offset(a.mask, b, c, i) + j * a.mask.stride[3], n, p.row);
      for (int64_t e = 0; e < n; ++e) {
        const float masked = m[e] * u[j + e];
        energy += static_cast<double>(masked * masked);
        u[j + e] = masked * m[e] * factor;
      }
    }
  }
  a.plane_loss[b * a.shape.c + c] = weight * energy;
  if (a.gradient) inverse(p, a.gradient, b, c);
}

}  // namespace softdiff::SOFTDIFF_ISA
