// SPDX-License-Identifier: Apache-2.0
// soft_score_loss and its gradient.
#pragma once

#include "gains.h"

namespace softdiff::SOFTDIFF_ISA {

// The first pass of a loss: the columns of prediction - target.
template <bool Scaled>
inline void difference_forward(Plane& p, const LossArgs& a, int64_t b, int64_t c) {
  if (is_plain(a.prediction) && is_plain(a.target)) {
    const float *x = plane_start(a.prediction, b, c), *y = plane_start(a.target, b, c);
    columns_forward_from<Scaled>(p, ahead_of(p, a.gradient, b, c), [&](int64_t j) SD_LAMBDA {
      return RowsDifference{rows_ahead(p, x + j, a.prediction.stride[2]), rows_ahead(p, y + j, a.target.stride[2])};
    });
  } else {
    stage(p, a.prediction, a.target, b, c);
    columns_forward<Scaled>(p);
  }
}

inline void soft_score_loss(const SoftScoreLossArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w,
                            void* scratch, bool again) {
  Plane p = carve(1, scratch, plan_h, plan_w);
  const double std = a.blur_std.at(b), weight = a.weight.at(b);
  const Mask mask = loss_gains(p, 0.5 * std * std, a.floor, again && c > 0);
  difference_forward<false>(p, a, b, c);
  const bool measure_only = !a.gradient;
  const float factor = static_cast<float>(2.0 * weight * a.gradient_scale);
  const double energy = mask.terms == 1 ? rows_mask<1, true>(p, mask.rows, measure_only, factor)
                                        : rows_mask<3, true>(p, mask.rows, measure_only, factor);
  a.plane_loss[b * a.shape.c + c] = weight * energy;
  if (!measure_only) finish<false>(p, a.gradient, b, c);
}

}  // namespace softdiff::SOFTDIFF_ISA
