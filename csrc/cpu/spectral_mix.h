// SPDX-License-Identifier: Apache-2.0
// spectral_mix: IDCT2(sum_k mask_k * DCT2(in_k) + noise_mask * n).
#pragma once

#include "dct2.h"
#include "runs.h"

namespace softdiff::SOFTDIFF_ISA {

inline void spectral_mix(const SpectralMixArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w,
                         void* scratch, bool) {
  Plane p = carve(2, scratch, plan_h, plan_w);
  Plane total = p;
  total.s = p.s + p.hp * p.stride;
  const auto mask_row = [&](const Image& mask, int64_t i, int64_t j, int64_t n) {
    return read_row(mask, row_offset(mask, b, c, i) + j * mask.stride[3], n, p.row);
  };
  for (int64_t e = 0; e < p.hp * p.stride; ++e) total.s[e] = 0.0f;
  for (int64_t k = 0; k < a.count; ++k) {
    forward(p, a.in[k], Ahead(), b, c);
    walk(p, [](int64_t, int64_t) {}, [&](int64_t i, int64_t j, int64_t n, int64_t) {
      const float *u = p.s + i * p.stride + j, *m = mask_row(a.mask[k], i, j, n);
      float* y = total.s + i * p.stride + j;
      for (int64_t e = 0; e < n; ++e) y[e] += m[e] * u[e];
    });
  }
  if (a.noise_mask && (a.noise || a.key.present)) {
    const Stream stream(key_of(a.key, b));
    const float* drawn = nullptr;
    walk(
        p,
        [&](int64_t first, int64_t count) {
          if (!a.noise) drawn = draw(p, stream, c * p.h * p.w + first, count);
        },
        [&](int64_t i, int64_t j, int64_t n, int64_t at) {
          const float* m = mask_row(a.noise_mask, i, j, n);
          const int64_t given = row_offset(a.noise, b, c, i) + j * a.noise.stride[3];
          const float* noise = a.noise ? read_row(a.noise, given, n, p.noise) : drawn + at;
          float* y = total.s + i * p.stride + j;
          for (int64_t e = 0; e < n; ++e) y[e] += m[e] * noise[e];
        });
  }
  inverse(total, a.out, b, c);
}

}  // namespace softdiff::SOFTDIFF_ISA
