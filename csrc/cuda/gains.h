// SPDX-License-Identifier: Apache-2.0
// What a sample's coefficients come to, and the 1-D gains of heat.h that its mask is made of.
#pragma once

#include "../args.h"
#include "ptx.h"

namespace softdiff::cuda {

// What a sample's coefficients come to, computed in float64 by one thread and shared.
struct Values {
  float tau, step, keep, one_minus_keep, scale, noise_std, floor;
  int reverse, identity;
};

// Not infinite, so that the mean's gain, exp(-0 tau), is no NaN; what is one stays one.
SOFTDIFF_DEVICE float bounded(double tau) {
  const float x = static_cast<float>(tau);
  return x > 3e38f ? 3e38f : x < -3e38f ? -3e38f : x;
}

SOFTDIFF_DEVICE Values values_of(double blur_std, float floor) {
  Values v;
  v.tau = bounded(0.5 * blur_std * blur_std), v.step = 0.0f;
  v.keep = 0.0f, v.one_minus_keep = 1.0f, v.scale = 1.0f, v.noise_std = 0.0f;
  v.floor = floor;
  v.reverse = 0;
  v.identity = v.tau == 0.0f;
  return v;
}

SOFTDIFF_DEVICE Values corrupt_values(const CorruptArgs& a, int b) {
  Values v = values_of(a.blur_std_s.at(b), static_cast<float>(a.floor));
  v.scale = static_cast<float>(a.scale.at(b)), v.noise_std = static_cast<float>(a.noise_std.at(b));
  return v;
}

// heat.h's heat_of for steps. Differences of the coefficients are float64's; the quotient of noise levels needs no
// division, and float32 holds the rest.
SOFTDIFF_DEVICE Values step_values(const CorruptArgs& a, int b) {
  const double s = a.blur_std_s.at(b), t = a.blur_std_t.at(b);
  Values v = values_of(t < s ? t : s, static_cast<float>(a.floor));
  v.step = bounded(0.5 * (t - s) * (t + s));
  v.reverse = 1;
  v.identity = v.identity && v.step == 0.0f;
  const double first = a.momentum ? a.noise_std_t.at(b) : a.keep.at(b);
  const double second = a.momentum ? a.noise_std_s.at(b) : a.noise_std.at(b);
  if (!a.momentum) {
    v.keep = static_cast<float>(first), v.one_minus_keep = static_cast<float>(1.0 - first);
    v.noise_std = static_cast<float>(second);
  } else {
    const double inverse = first == 0.0 ? 0.0 : reciprocal(first);
    const double less = (first - second) * inverse, ratio = first == 0.0 ? 1.0 : second * inverse;
    v.one_minus_keep = static_cast<float>(less * (1.0 + ratio));
    v.keep = static_cast<float>(ratio * ratio);
    v.noise_std = static_cast<float>(first) * sqrt_approx(fmaxf(v.one_minus_keep, 0.0f));
    if (a.small_variance) v.noise_std *= static_cast<float>(ratio);
  }
  return v;
}

SOFTDIFF_DEVICE float mask_constant(const Values& v) {
  return v.floor * (v.reverse ? v.one_minus_keep : 1.0f);
}

// The two factors of a frequency, root = pi k / n; `rows` says of which axis.
SOFTDIFF_DEVICE void gain_at(const Values& v, float root, bool rows, float& first, float& second) {
  const float lambda = root * root, e = exp2f(-1.44269504f * (lambda * v.tau)) * (rows ? 1.0f : 1.0f - v.floor);
  first = e, second = 0.0f;
  if (!v.reverse) return;
  const float exponent = -lambda * fabsf(v.step);
  const float p = -expm1f(exponent), q = 1.0f - p;
  if (rows) {
    first = v.step >= 0.0f ? e * p : e * (v.one_minus_keep - p);
    second = e * q;
  } else {
    second = v.step >= 0.0f ? e * fmaf(v.one_minus_keep, q, p) : -e * p;
  }
}

}  // namespace softdiff::cuda
