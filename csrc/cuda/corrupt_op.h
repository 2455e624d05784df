// SPDX-License-Identifier: Apache-2.0
// corrupt, blur and step as the engines see them (ops.h).
#pragma once

#include "ops.h"

namespace softdiff::cuda {

struct CorruptOp {
  using Args = CorruptArgs;
  static constexpr Shift kShift = Shift::filter;
  static constexpr int kSources = 1, kTerms = 2;
  static constexpr bool kMix = false, kMasked = false, kEnergy = false, kPlain = false, kAdd = false, kNoise = false;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int, int) const { return a.source; }
  SOFTDIFF_DEVICE Values values(int b) const { return a.reverse ? step_values(a, b) : corrupt_values(a, b); }
  SOFTDIFF_DEVICE bool backward() const { return true; }
  SOFTDIFF_DEVICE float apply(float u, float m, float&) const { return u * m; }

  SOFTDIFF_DEVICE void finish(const Values& v, int b, int c, int y, int x, int first, int last,
                              float (&value)[4]) const {
    float other[4];
    if (v.identity) {
      // Exactly the input times a number: no transform, whose rounding would show.
      read(Plane(a.source, here(b), c), y, x, first, last, value);
    }
    const float factor = v.reverse ? (v.identity ? v.one_minus_keep : 1.0f) : v.scale;
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] *= factor;
    if (a.add) {
      read(Plane(a.add, b, c), y, x, first, last, other);
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] = fmaf(v.keep, other[i], value[i]);
    }
    if (a.noise || a.key.present) {
      if (a.noise) {
        read(Plane(a.noise, here(b), c), y, x, first, last, other);
      } else {
        normals_at(key_of(a.key, b), element(a.shape, c, y, x), other);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] = fmaf(v.noise_std, other[i], value[i]);
    }
    if (a.residual) {
      read(Plane(a.source, here(b), c), y, x, first, last, other);
#pragma unroll
      for (int i = 0; i < 4; ++i) other[i] -= value[i];
      write(Plane(a.residual, here(b), c), y, x, first, last, other);
    }
    write(Plane(a.out, b, c), y, x, first, last, value);
  }
};

}  // namespace softdiff::cuda
