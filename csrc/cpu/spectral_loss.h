// SPDX-License-Identifier: Apache-2.0
// spectral_loss and its gradient.
#pragma once

#include "soft_score_loss.h"

namespace softdiff::SOFTDIFF_ISA {

// The mask times the transform's normalisation, in the order in which strips of rows hold their spectrum.
inline void mask_strips(const Plane& p, const Image& mask, int64_t b, int64_t c, V* strips) {
  const int32_t* position = p.plan_w->position;
  for (int64_t k = 0; k < p.hp; k += VL, strips += p.w) {
    const V norm_h = load_part(p.plan_h->norm + k, p.h - k < VL ? p.h - k : VL);
    for (int64_t l = 0; l < p.wp; l += VL) {
      V tile[VL];
      read_tile(p, mask, b, c, k, l, tile);
      transpose(tile);
      for (int i = 0; i < VL && l + i < p.w; ++i) strips[position[l + i]] = tile[i] * norm_h * p.plan_w->norm[l + i];
    }
  }
}

inline void spectral_loss(const SpectralLossArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w,
                          void* scratch, bool again) {
  Plane p = carve(2, scratch, plan_h, plan_w);
  V* strips = reinterpret_cast<V*>(p.s + p.hp * p.stride);
  if (!again || a.mask.stride[1] != 0) mask_strips(p, a.mask, b, c, strips);
  const double weight = a.weight.at(b);
  const float factor = static_cast<float>(2.0 * weight * a.gradient_scale);
  set_offsets(p, p.h);
  difference_forward<false>(p, a, b, c);
  double energy = 0.0;
  for (int64_t k = 0; k < p.hp; k += VL, strips += p.w) {
    rows_load(p, k, p.x, nullptr);
    two(Strip{p.x}, Strip{p.y}, p.work, plan_w->level);
    energy += strip_sum(p.w, [&](int64_t l, V& to) SD_LAMBDA {
      const V masked = p.y[l] * strips[l];
      to += masked * masked;
      p.y[l] = masked * strips[l] * factor;
    });
    if (!a.gradient) continue;
    two_t(Strip{p.y}, Strip{p.x}, p.work, plan_w->level);
    rows_store(p, k, p.x, nullptr);
  }
  a.plane_loss[b * a.shape.c + c] = weight * energy;
  if (a.gradient) finish<false>(p, a.gradient, b, c);
}

}  // namespace softdiff::SOFTDIFF_ISA
