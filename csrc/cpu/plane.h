// SPDX-License-Identifier: Apache-2.0
// One plane of an image as float32 in cache, with the strips and tables that its passes need.
#pragma once

#include "convert.h"
#include "kernels.h"
#include "plan.h"

namespace softdiff::SOFTDIFF_ISA {

SD_INLINE int64_t round_up(int64_t n) { return (n + VL - 1) / VL * VL; }

struct Plane {
  int64_t h, w, hp, wp, stride;  // hp, wp: rounded up to VL; rows and columns beyond h, w are padding
  float* s;                      // [hp][stride]
  V *x, *y, *work;               // [n], [n], [2 n + spare], n = max(hp, wp): the strip at work
  float* row;                    // [kChunk + padding] x 2: one chunk of converted elements, one of noise
  float* noise;
  float *gain_h[3], *gain_w[3];  // [hp], [wp]
  int64_t* offset;               // [hp]: of the row with the frequency at each place of a strip, from s
  float* nothing;                // [stride]: a row of zeros
  const Plan *plan_h, *plan_w;
};

// Bytes that the strips, tables and `planes` planes take, laid out from `base` on.
inline int64_t layout(const Plan* plan_h, const Plan* plan_w, int64_t planes, Plane* p, char* base) {
  const int64_t h = plan_h->n, w = plan_w->n;
  const int64_t hp = round_up(h), wp = round_up(w), longest = hp > wp ? hp : wp;
  const int64_t spare = plan_h->spare > plan_w->spare ? plan_h->spare : plan_w->spare;
  // A power-of-two stride would put a strip's rows into few cache sets.
  const int64_t stride = wp % 64 == 0 ? wp + 16 : wp;
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* at = reinterpret_cast<float*>(base + used);
    used += (floats * 4 + 63) / 64 * 64;
    return at;
  };
  Plane local;
  Plane& q = p != nullptr ? *p : local;
  q.plan_h = plan_h, q.plan_w = plan_w;
  q.h = h, q.w = w, q.hp = hp, q.wp = wp, q.stride = stride;
  q.x = reinterpret_cast<V*>(take(longest * VL));
  q.y = reinterpret_cast<V*>(take(longest * VL));
  q.work = reinterpret_cast<V*>(take((2 * longest + spare) * VL));
  q.row = take(kChunk + 4 * VL + 16);
  q.noise = take(kChunk + 4 * VL + 16);
  for (int i = 0; i < 3; ++i) q.gain_h[i] = take(hp);
  for (int i = 0; i < 3; ++i) q.gain_w[i] = take(wp);
  q.offset = reinterpret_cast<int64_t*>(take(2 * hp));
  q.nothing = take(stride);
  q.s = take(hp * stride * planes);
  return used;
}

// `planes` as in kernels.h.
inline Plane carve(int64_t planes, void* scratch, const Plan* plan_h, const Plan* plan_w) {
  Plane p;
  layout(plan_h, plan_w, planes, &p, static_cast<char*>(scratch));
  return p;
}

// dst = y + fa a + fb b over n elements; `Terms` says how many of a and b there are. Each element is read
// before it is written, so that dst may be y, a or b.
template <int Terms>
SD_INLINE void combine(float* dst, const float* y, const float* a, float fa, const float* b, float fb, int64_t n) {
  int64_t e = 0;
  for (; e + VL <= n; e += VL) {
    V v = load(y + e);
    if constexpr (Terms > 0) v += load(a + e) * fa;
    if constexpr (Terms > 1) v += load(b + e) * fb;
    store(dst + e, v);
  }
  for (; e < n; ++e) {
    float v = y[e];
    if constexpr (Terms > 0) v += a[e] * fa;
    if constexpr (Terms > 1) v += b[e] * fb;
    dst[e] = v;
  }
}

// Whether a plane of the image lies in memory as this plane does, to be read or written where it is.
SD_INLINE bool is_plain(const Image& image) { return image.dtype == DType::float32 && image.stride[3] == 1; }

SD_INLINE float* plane_start(const Image& image, int64_t b, int64_t c) {
  return static_cast<float*>(image.data) + row_offset(image, b, c, 0);
}

SD_INLINE void clear_rows(Plane& p) {
  for (int64_t i = p.h; i < p.hp; ++i) {
    for (int64_t j = 0; j < p.wp; j += VL) store(p.s + i * p.stride + j, V{});
  }
}

// The plane (b, c) of an image, or of the difference of two, scaled; padding zeroed.
inline void stage(Plane& p, const Image& image, const Image& minus, int64_t b, int64_t c, float scale = 1.0f) {
  for (int64_t i = 0; i < p.h; ++i) {
    float* s = p.s + i * p.stride;
    for (int64_t j = 0; j < p.w; j += kChunk) {
      const int64_t n = p.w - j < kChunk ? p.w - j : kChunk;
      const float* x = read_row(image, row_offset(image, b, c, i) + j * image.stride[3], n, p.row);
      if (minus) {
        const float* y = read_row(minus, row_offset(minus, b, c, i) + j * minus.stride[3], n, p.noise);
        combine<1>(s + j, x, y, -1.0f, nullptr, 0.0f, n);
      } else if (scale != 1.0f) {
        for (int64_t e = 0; e < n; ++e) s[j + e] = x[e] * scale;
      } else {
        combine<0>(s + j, x, nullptr, 0.0f, nullptr, 0.0f, n);
      }
    }
    for (int64_t j = p.w; j < p.wp; ++j) s[j] = 0.0f;
  }
  clear_rows(p);
}

}  // namespace softdiff::SOFTDIFF_ISA
