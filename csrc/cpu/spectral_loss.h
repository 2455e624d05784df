// SPDX-License-Identifier: Apache-2.0
// spectral_loss and its gradient.
#pragma once

#include "soft_score_loss.h"

namespace softdiff::SOFTDIFF_ISA {

// A strip of rows of the spectrum in the order in which a transform leaves it, times `norm_h` and `norm_w` of its
// frequencies, zeros beyond the plane; `read(l, tile)` gives rows k to k + VL from column l on.
template <class Read>
SD_INLINE void strip_of(const Plane& p, int64_t k, const float* norm_h, const float* norm_w, V* strip, Read read) {
  const int32_t* position = p.plan_w->position;
  const V along_h = load_part(norm_h + k, p.h - k < VL ? p.h - k : VL);
  for (int64_t l = 0; l < p.w; l += VL) {
    V tile[VL];
    read(l, tile);
    transpose(tile);
    for (int i = 0; i < VL && l + i < p.w; ++i) strip[position[l + i]] = tile[i] * along_h * norm_w[l + i];
  }
}

inline void mask_strip(const Plane& p, const Image& mask, int64_t b, int64_t c, int64_t k, const float* norm_h,
                       const float* norm_w, V* strip) {
  strip_of(p, k, norm_h, norm_w, strip, [&](int64_t l, V* tile) SD_LAMBDA { read_tile(p, mask, b, c, k, l, tile); });
}

// Whether the last plane in this scratch, the one before, had the same mask.
SD_INLINE bool same_mask(const Image& mask, int64_t c, bool again) {
  return again && mask.stride[1] == 0 && (c > 0 || mask.stride[0] == 0);
}

inline void spectral_loss(const SpectralLossArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w,
                          void* scratch, bool again) {
  Plane p = carve(planes_of(a), scratch, plan_h, plan_w);
  V* strips = reinterpret_cast<V*>(p.s + p.hp * p.stride);
  if (!same_mask(a.mask, c, again)) {
    for (int64_t k = 0; k < p.hp; k += VL) {
      mask_strip(p, a.mask, b, c, k, plan_h->norm, plan_w->norm, strips + k / VL * p.w);
    }
  }
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
