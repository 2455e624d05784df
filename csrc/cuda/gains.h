// SPDX-License-Identifier: Apache-2.0
// The 1-D gains of heat.h in shared memory, and the mask that they make.
#pragma once

#include "../args.h"
#include "ptx.h"

namespace softdiff::cuda {

// What a sample's coefficients come to, computed in float64 by one thread and shared.
struct Values {
  float tau, step, keep, one_minus_keep, scale, noise_std, floor;
  int reverse, identity;
  int kept_h, kept_w;  // tiles of each axis's frequencies that are not left out (plane.h)
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
  v.kept_h = v.kept_w = 0;
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
    const double less = first == 0.0 ? 0.0 : (first - second) * reciprocal(first), ratio = 1.0 - less;
    v.one_minus_keep = static_cast<float>(less * (1.0 + ratio));
    v.keep = static_cast<float>(ratio * ratio);
    v.noise_std = static_cast<float>(first) * sqrt_approx(fmaxf(v.one_minus_keep, 0.0f));
    if (a.small_variance) v.noise_std *= static_cast<float>(ratio);
  }
  return v;
}

// Frequencies are kept with the even ones first, `half` places for each parity, as the products want them;
// in their own order where half is 0.
SOFTDIFF_DEVICE int place(int k, int half) { return half == 0 ? k : (k & 1) * half + (k >> 1); }

// mask[k, l] = h[0][k] w[0][l] + h[1][k] w[1][l] + constant.
struct Gains {
  float* h[2];
  float* w[2];
  int half_h, half_w;

  SOFTDIFF_DEVICE Gains(Arena& arena, int count_h, int count_w, int half_h_, int half_w_)
      : half_h(half_h_), half_w(half_w_) {
    for (int i = 0; i < 2; ++i) h[i] = arena.take<float>(count_h), w[i] = arena.take<float>(count_w);
  }
};

inline size_t gains_room(int count_h, int count_w) { return 2 * (room<float>(count_h) + room<float>(count_w)); }

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

// Gains of an axis of length n for `count` frequencies from `start`, by all threads; zeros from n on, where spectra
// are padded with zeros.
SOFTDIFF_DEVICE void fill_axis(const Values& v, float* first, float* second, int n, int start, int count, int half,
                               bool rows, int thread, int threads) {
  const float unit = 3.14159265358979f / static_cast<float>(n);
  for (int i = thread; i < count; i += threads) {
    float e = 0.0f, f = 0.0f;
    if (start + i < n) gain_at(v, unit * static_cast<float>(start + i), rows, e, f);
    first[place(i, half)] = e;
    if (v.reverse) second[place(i, half)] = f;
  }
}

// Frequencies of an axis whose gain can be above exp(-30), 1e-13: the others are left out of the products.
SOFTDIFF_DEVICE int kept(const Values& v, int n) {
  if (v.floor != 0.0f || !(v.tau > 0.0f)) return n;
  const float last = sqrtf(30.0f / v.tau) * (static_cast<float>(n) * 0.318309886f);
  return last + 1.0f < static_cast<float>(n) ? static_cast<int>(last) + 1 : n;
}

}  // namespace softdiff::cuda
