// SPDX-License-Identifier: Apache-2.0
// What each op adds to the transform: its images, its mask, and what becomes of the result. The four engines
// (small.h, plane.h, cluster.h, lines.h) are templates over these.
#pragma once

#include "gains.h"
#include "noise.h"
#include "pixels.h"

namespace softdiff::cuda {

enum class Shift { filter, forward, inverse };  // DCT2 - mask - IDCT2, or one of the transforms alone

constexpr int kMostInputs = 4;

// args.h's MixArgs with its arrays inside, since a kernel's arguments are copied to the device.
struct MixParameters {
  Shape shape;
  int count = 0;
  Image in[kMostInputs], mask[kMostInputs], noise_mask, out;
  Key key;
};

SOFTDIFF_DEVICE int64_t element(const Shape& s, int c, int y, int x) { return (static_cast<int64_t>(c) * s.h + y) * s.w + x; }

struct FilterOp {
  using Args = FilterArgs;
  static constexpr Shift kShift = Shift::filter;
  static constexpr int kSources = 1;
  static constexpr bool kMix = false, kEnergy = false;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int, int) const { return a.source; }
  SOFTDIFF_DEVICE Values values(int b) const { return values_of(heat_of(a, b)); }
  SOFTDIFF_DEVICE bool backward() const { return true; }
  SOFTDIFF_DEVICE float apply(float u, float m, float&) const { return u * m; }

  SOFTDIFF_DEVICE void finish(const Values& v, int b, int c, int y, int x, int first, int last,
                              float (&value)[4]) const {
    float other[4];
    if (v.identity) {
      // Exactly the input times a number: no transform, whose rounding would show.
      read(Plane(a.source, here(b), c), y, x, first, last, value);
    }
    const float factor = v.reverse ? (v.identity ? v.rest : 1.0f) : v.scale;
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

struct LossOp {
  using Args = LossArgs;
  static constexpr Shift kShift = Shift::filter;
  static constexpr int kSources = 2;
  static constexpr bool kMix = false, kEnergy = true;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int, int i) const { return i == 0 ? a.prediction : a.target; }
  SOFTDIFF_DEVICE Values values(int b) const {
    Heat heat;
    const double s = a.blur_std.at(b);
    heat.tau = 0.5 * s * s;
    heat.floor = a.floor;
    Values v = values_of(heat);
    v.identity = 0;
    v.scale = static_cast<float>(2.0 * a.weight.at(b) * a.gradient_scale);
    return v;
  }
  SOFTDIFF_DEVICE bool backward() const { return static_cast<bool>(a.gradient); }
  SOFTDIFF_DEVICE float apply(float u, float m, float& energy) const {
    const float masked = u * m;
    energy = fmaf(masked, masked, energy);
    return masked * m;
  }
  SOFTDIFF_DEVICE void finish(const Values& v, int b, int c, int y, int x, int first, int last,
                              float (&value)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] *= v.scale;
    write(Plane(a.gradient, b, c), y, x, first, last, value);
  }
};

template <Shift kWay>
struct TransformOp {
  using Args = TransformArgs;
  static constexpr Shift kShift = kWay;
  static constexpr int kSources = 1;
  static constexpr bool kMix = false, kEnergy = false;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int, int) const { return a.in; }
  SOFTDIFF_DEVICE bool backward() const { return true; }
  SOFTDIFF_DEVICE float apply(float u, float, float&) const { return u; }
  SOFTDIFF_DEVICE Values values(int) const { return values_of(Heat{}); }
  SOFTDIFF_DEVICE void finish(const Values&, int b, int c, int y, int x, int first, int last,
                              float (&value)[4]) const {
    write(Plane(a.out, b, c), y, x, first, last, value);
  }
};

struct MixOp {
  using Args = MixParameters;
  static constexpr Shift kShift = Shift::filter;
  static constexpr int kSources = 1;
  static constexpr bool kMix = true, kEnergy = false;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int input, int) const { return a.in[input]; }
  SOFTDIFF_DEVICE bool backward() const { return true; }
  SOFTDIFF_DEVICE float apply(float u, float m, float&) const { return u * m; }
  SOFTDIFF_DEVICE Values values(int) const { return values_of(Heat{}); }
  SOFTDIFF_DEVICE float mask(int input, int b, int c, int k, int l) const {
    return one(a.mask[input], b, c, k, l);
  }
  SOFTDIFF_DEVICE bool noisy() const { return a.noise_mask && a.key.present; }
  SOFTDIFF_DEVICE float noise(int b, int c, int k, int l) const {
    float z[4];
    const int64_t e = element(a.shape, c, k, l);
    normals(key_of(a.key, b), static_cast<uint32_t>(e >> 2), z);
    const float low = (e & 1) != 0 ? z[1] : z[0], high = (e & 1) != 0 ? z[3] : z[2];
    return one(a.noise_mask, b, c, k, l) * ((e & 2) != 0 ? high : low);
  }
  SOFTDIFF_DEVICE void finish(const Values&, int b, int c, int y, int x, int first, int last,
                              float (&value)[4]) const {
    write(Plane(a.out, b, c), y, x, first, last, value);
  }

 private:
  SOFTDIFF_DEVICE static float one(const Image& image, int b, int c, int k, int l) {
    float x[4];
    read(Plane(image, b, c), k, l, 0, 1, x);
    return x[0];
  }
};

}  // namespace softdiff::cuda
