// SPDX-License-Identifier: Apache-2.0
// soft_score_loss, dct2 / idct2, spectral_mix and normal.
#pragma once

#include "filter.h"

namespace softdiff::SOFTDIFF_ISA {

// The last pass, to where the result belongs.
template <bool Scaled>
inline void finish(Plane& p, const Image& out, int64_t b, int64_t c, int64_t rows) {
  if (is_plain(out)) {
    columns_inverse_to<Scaled>(p, rows, plane_start(out, b, c), out.stride[2]);
    return;
  }
  columns_inverse_to<Scaled>(p, rows);
  for (int64_t i = 0; i < p.h; ++i) write_row(out, row_offset(out, b, c, i), p.w, p.s + i * p.stride);
}

inline void loss(const LossArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w, void* scratch,
                 bool again) {
  Plane p = carve(1, scratch, plan_h, plan_w);
  const double std = a.blur_std.at(b), weight = a.weight.at(b);
  const Mask mask = loss_gains(p, 0.5 * std * std, a.floor, again);
  if (p.w == p.wp && is_plain(a.prediction) && is_plain(a.target)) {
    columns_forward_difference(p, mask.rows,
                               {rows_ahead(p, plane_start(a.prediction, b, c), a.prediction.stride[2]),
                                rows_ahead(p, plane_start(a.target, b, c), a.target.stride[2])});
  } else {
    stage(p, a.prediction, a.target, b, c);
    columns_forward(p, mask.rows);
  }
  const bool measure_only = !a.gradient;
  const float factor = static_cast<float>(2.0 * weight * a.gradient_scale);
  const double energy = mask.terms == 1 ? rows_mask<1, true>(p, mask.rows, measure_only, factor)
                                        : rows_mask<3, true>(p, mask.rows, measure_only, factor);
  a.plane_loss[b * a.shape.c + c] = weight * energy;
  if (!measure_only) finish<false>(p, a.gradient, b, c, mask.rows);
}

// DCT2 of the plane (b, c) of an image, into p.s.
SD_INLINE void forward(Plane& p, const Image& in, int64_t b, int64_t c) {
  if (is_plain(in)) {
    columns_forward<true>(p, p.h, plane_start(in, b, c), in.stride[2]);
  } else {
    stage(p, in, Image{}, b, c);
    columns_forward<true>(p, p.h);
  }
  rows_transform(p, false);
}

SD_INLINE void inverse(Plane& p, const Image& out, int64_t b, int64_t c) {
  rows_transform(p, true);
  finish<true>(p, out, b, c, p.h);
}

inline void transform(const TransformArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w,
                      void* scratch, bool) {
  Plane p = carve(1, scratch, plan_h, plan_w);
  if (a.inverse) {
    stage(p, a.in, Image{}, b, c);
    inverse(p, a.out, b, c);
    return;
  }
  forward(p, a.in, b, c);
  for (int64_t i = 0; i < p.h; ++i) write_row(a.out, row_offset(a.out, b, c, i), p.w, p.s + i * p.stride);
}

inline void mix(const MixArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w, void* scratch, bool) {
  Plane p = carve(2, scratch, plan_h, plan_w);
  Plane total = p;
  total.s = p.s + p.hp * p.stride;
  const auto mask_row = [&](const Image& mask, int64_t i, int64_t j, int64_t n) {
    return read_row(mask, row_offset(mask, b, c, i) + j * mask.stride[3], n, p.row);
  };
  for (int64_t e = 0; e < p.hp * p.stride; ++e) total.s[e] = 0.0f;
  for (int64_t k = 0; k < a.count; ++k) {
    forward(p, a.in[k], b, c);
    walk(p, [](int64_t, int64_t) {}, [&](int64_t i, int64_t j, int64_t n, int64_t) {
      const float *u = p.s + i * p.stride + j, *m = mask_row(a.mask[k], i, j, n);
      float* y = total.s + i * p.stride + j;
      for (int64_t e = 0; e < n; ++e) y[e] += m[e] * u[e];
    });
  }
  if (a.noise_mask) {
    const Stream stream(key_of(a.key, b));
    const float* noise = nullptr;
    walk(
        p, [&](int64_t first, int64_t count) { noise = draw(p, stream, c * p.h * p.w + first, count); },
        [&](int64_t i, int64_t j, int64_t n, int64_t at) {
          const float* m = mask_row(a.noise_mask, i, j, n);
          float* y = total.s + i * p.stride + j;
          for (int64_t e = 0; e < n; ++e) y[e] += m[e] * noise[at + e];
        });
  }
  inverse(total, a.out, b, c);
}

inline void normal(const NormalArgs& a, int64_t b, int64_t begin, int64_t end, void* scratch) {
  const Stream stream(key_of(a.key, b));
  float* buffer = static_cast<float*>(scratch);
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    fill_normals(stream, static_cast<uint64_t>(at >> 2), (n + 3) >> 2, buffer);
    write_row(a.out, b * a.count + at, n, buffer);
  }
}

inline int64_t scratch_bytes(const Plan* plan_h, const Plan* plan_w, int planes) {
  return layout(plan_h, plan_w, planes, nullptr, nullptr);
}

const Kernels kernels = {SOFTDIFF_VL == 16 ? "avx512" : SOFTDIFF_VL == 8 ? "avx2" : "portable",
                         scratch_bytes, filter, loss, transform, mix, normal};

}  // namespace softdiff::SOFTDIFF_ISA
