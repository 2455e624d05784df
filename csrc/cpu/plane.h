// SPDX-License-Identifier: Apache-2.0
// One plane of an image as float32 in cache, and the passes over it: columns, rows, columns.
//
// The 2-D transform R_H x R_W^T needs one transposition in and one out: columns are transformed VL at
// a time where they lie; rows VL at a time through VL x VL tiles, where forward, mask and inverse follow
// one another before the tile goes back. Rows of the spectrum whose gain is under exp(-20) = 2e-9 are
// dropped: a strong blur makes the row pass cheap.
#pragma once

#include "convert.h"
#include "dct.h"
#include "kernels.h"

namespace softdiff::SOFTDIFF_ISA {

SD_INLINE int64_t round_up(int64_t n) { return (n + VL - 1) / VL * VL; }

struct Plane {
  int64_t h, w, hp, wp, stride;  // hp, wp: rounded up to VL; rows and columns beyond h, w are padding
  float* s;                      // [hp][stride]
  V *x, *spare;                  // [max(hp, wp)] each: the strip at work
  float* row;                    // [kChunk + padding] x 2: one chunk of converted elements, one of noise
  float* noise;
  float *gain_h[3], *gain_w[3];  // [hp], [wp]
  const Plan *plan_h, *plan_w;
};

// Bytes that `carve` takes. `planes` is 1, or 2 where an op accumulates a second plane.
inline int64_t layout(int64_t h, int64_t w, int planes, Plane* p, char* base) {
  const int64_t hp = round_up(h), wp = round_up(w), longest = hp > wp ? hp : wp;
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
  q.h = h, q.w = w, q.hp = hp, q.wp = wp, q.stride = stride;
  q.x = reinterpret_cast<V*>(take(longest * VL));
  q.spare = reinterpret_cast<V*>(take(longest * VL));
  q.row = take(kChunk + 4 * VL + 16);
  q.noise = take(kChunk + 4 * VL + 16);
  for (int i = 0; i < 3; ++i) q.gain_h[i] = take(hp);
  for (int i = 0; i < 3; ++i) q.gain_w[i] = take(wp);
  q.s = take(hp * stride * planes);
  return used;
}

inline Plane carve(const Shape& shape, int planes, void* scratch, const Plan* plan_h, const Plan* plan_w) {
  Plane p;
  layout(shape.h, shape.w, planes, &p, static_cast<char*>(scratch));
  p.plan_h = plan_h, p.plan_w = plan_w;
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

// R_H down the columns; row k of the result is frequency k. The columns come from p.s, or from rows of
// the caller's, `from_stride` apart and not padded. `scale`: by frequency, or none.
inline void columns_forward(Plane& p, const float* scale, const float* from = nullptr, int64_t from_stride = 0) {
  const int32_t* position = p.plan_h->position;
  const uintptr_t next = static_cast<uintptr_t>(p.h * from_stride * 4);
  for (int64_t j = 0; j < p.wp; j += VL) {
    float* s = p.s + j;
    if (from == nullptr) {
      for (int64_t i = 0; i < p.h; ++i) p.x[i] = load(s + i * p.stride);
    } else if (j + VL <= p.w) {
      for (int64_t i = 0; i < p.h; ++i) {
        const float* at = from + i * from_stride + j;
        // The plane that this thread most likely takes next; asking beyond the image does no harm.
        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) + next), 0, 2);
        p.x[i] = load(at);
      }
    } else {
      for (int64_t i = 0; i < p.h; ++i) {
        p.x[i] = V{};
        __builtin_memcpy(&p.x[i], from + i * from_stride + j, static_cast<size_t>(p.w - j) * 4);
      }
    }
    two(p.x, p.spare, p.plan_h->level);
    if (scale != nullptr) {
      for (int64_t k = 0; k < p.h; ++k) store(s + k * p.stride, p.x[position[k]] * scale[k]);
    } else {
      for (int64_t k = 0; k < p.h; ++k) store(s + k * p.stride, p.x[position[k]]);
    }
  }
  if (from != nullptr) clear_rows(p);
}

// R_H^T down the columns, of which only the first `rows` frequencies are not zero; into p.s, or into rows
// of the caller's.
inline void columns_inverse(Plane& p, int64_t rows, const float* scale, float* to = nullptr, int64_t to_stride = 0) {
  const int32_t* position = p.plan_h->position;
  for (int64_t j = 0; j < p.wp; j += VL) {
    float* s = p.s + j;
    for (int64_t k = 0; k < rows; ++k) p.x[position[k]] = load(s + k * p.stride);
    for (int64_t k = rows; k < p.h; ++k) p.x[position[k]] = V{};
    if (scale != nullptr) {
      for (int64_t k = 0; k < p.h; ++k) p.x[position[k]] *= scale[k];
    }
    two_t(p.x, p.spare, p.plan_h->level);
    if (to == nullptr) {
      for (int64_t i = 0; i < p.h; ++i) store(s + i * p.stride, p.x[i]);
    } else if (j + VL <= p.w) {
      for (int64_t i = 0; i < p.h; ++i) store(to + i * to_stride + j, p.x[i]);
    } else {
      for (int64_t i = 0; i < p.h; ++i) {
        __builtin_memcpy(to + i * to_stride + j, &p.x[i], static_cast<size_t>(p.w - j) * 4);
      }
    }
  }
}

SD_INLINE void rows_load(Plane& p, int64_t k, const int32_t* position) {
  for (int64_t l = 0; l < p.wp; l += VL) {
    V tile[VL];
    for (int i = 0; i < VL; ++i) tile[i] = load(p.s + (k + i) * p.stride + l);
    transpose(tile);
    if (position == nullptr) {
      for (int i = 0; i < VL; ++i) p.x[l + i] = tile[i];
    } else {
      for (int i = 0; i < VL && l + i < p.w; ++i) p.x[position[l + i]] = tile[i];
    }
  }
}

SD_INLINE void rows_store(Plane& p, int64_t k, const int32_t* position) {
  for (int64_t l = 0; l < p.wp; l += VL) {
    V tile[VL];
    if (position == nullptr) {
      for (int i = 0; i < VL; ++i) tile[i] = p.x[l + i];
    } else {
      for (int i = 0; i < VL; ++i) tile[i] = l + i < p.w ? p.x[position[l + i]] : V{};
    }
    transpose(tile);
    for (int i = 0; i < VL; ++i) store(p.s + (k + i) * p.stride + l, tile[i]);
  }
}

// Forward and normalised along the rows: the spectrum in its natural order, or back from it.
inline void rows_transform(Plane& p, bool inverse) {
  const int32_t* position = p.plan_w->position;
  const float* norm = p.plan_w->norm;
  for (int64_t k = 0; k < p.hp; k += VL) {
    rows_load(p, k, inverse ? position : nullptr);
    if (!inverse) two(p.x, p.spare, p.plan_w->level);
    for (int64_t l = 0; l < p.w; ++l) p.x[position[l]] *= norm[l];
    if (inverse) two_t(p.x, p.spare, p.plan_w->level);
    rows_store(p, k, inverse ? nullptr : position);
  }
}

// Rows forward, times the mask of `Terms` products of gains, and, unless `measure_only`, back. With
// `Energy`, adds up mask * spectrum^2, and multiplies what goes back by `factor`.
template <int Terms, bool Energy>
inline double rows_mask(Plane& p, int64_t rows, bool measure_only, float factor) {
  double energy = 0.0;
  const float *w0 = p.gain_w[0], *w1 = p.gain_w[1], *w2 = p.gain_w[2];
  for (int64_t k = 0; k < rows; k += VL) {
    const V h0 = load(p.gain_h[0] + k);
    const V h1 = Terms > 1 ? load(p.gain_h[1] + k) : V{};
    const V h2 = Terms > 2 ? load(p.gain_h[2] + k) : V{};
    rows_load(p, k, nullptr);
    two(p.x, p.spare, p.plan_w->level);
    V sum = {};
    for (int64_t l = 0; l < p.w; ++l) {
      V gain = h0 * w0[l];
      if constexpr (Terms > 1) gain += h1 * w1[l];
      if constexpr (Terms > 2) gain += h2 * w2[l];
      const V masked = p.x[l] * gain;
      if constexpr (Energy) sum += masked * p.x[l];
      p.x[l] = Energy ? masked * factor : masked;
    }
    if constexpr (Energy) {
      for (int i = 0; i < VL; ++i) energy += static_cast<double>(sum[i]);
    }
    if (measure_only) continue;
    two_t(p.x, p.spare, p.plan_w->level);
    rows_store(p, k, nullptr);
  }
  return energy;
}

}  // namespace softdiff::SOFTDIFF_ISA
