// SPDX-License-Identifier: Apache-2.0
// What a sample's coefficients mean to the operator, for host and device alike.
//
// Every mask of the library is a sum of at most three products of 1-D gains. With e the gain of the
// weaker blur, q = exp(-lambda |tau_t - tau_s|), p = 1 - q, per axis, and r = 1 - keep:
//   C_s                      = e_k e_l
//   C_s - keep C_t (s <= t)  = (e p)_k e_l + (e q)_k (e (p + r q))_l
//   C_s - keep C_t (s > t)   = (e (r - p))_k e_l - (e q)_k (e p)_l
// p comes from expm1, so that small steps lose no digits.
#pragma once

#include "args.h"

#include <cmath>

namespace softdiff {

struct Heat {
  double tau = 0.0;      // blur_std^2 / 2 of the weaker blur
  double step = 0.0;     // tau_t - tau_s; 0 where there is no second blur
  bool reverse = false;  // whether the mask has the second blur at all
  double one_minus_keep = 1.0;
  double scale = 1.0;
  double floor = 0.0;
  double keep = 0.0;
  double noise_std = 0.0;
  SOFTDIFF_HD bool identity() const { return tau == 0.0 && step == 0.0; }
};

SOFTDIFF_HD Heat heat_of(const CorruptArgs& a, int64_t b) {
  Heat h;
  const double s = a.blur_std_s.at(b);
  h.tau = 0.5 * s * s;
  h.floor = a.floor;
  if (!a.reverse) {
    h.scale = a.scale.at(b);
    h.noise_std = a.noise_std.at(b);
    return h;
  }
  const double t = a.blur_std_t.at(b);
  h.reverse = true;
  h.step = 0.5 * (t - s) * (t + s);
  if (h.step < 0.0) h.tau = 0.5 * t * t;
  if (!a.momentum) {
    h.keep = a.keep.at(b);
    h.one_minus_keep = 1.0 - h.keep;
    h.noise_std = a.noise_std.at(b);
    return h;
  }
  const double sigma_t = a.noise_std_t.at(b), sigma_s = a.noise_std_s.at(b);
  if (sigma_t == 0.0) {
    h.keep = 1.0, h.one_minus_keep = 0.0, h.noise_std = 0.0;
    return h;
  }
  const double ratio = sigma_s / sigma_t;
  const double gap = (sigma_t - sigma_s) * (sigma_t + sigma_s);
  h.keep = ratio * ratio;
  h.one_minus_keep = gap / (sigma_t * sigma_t);
  h.noise_std = std::sqrt(gap > 0.0 ? gap : 0.0) * (a.small_variance ? ratio : 1.0);
  return h;
}

}  // namespace softdiff
