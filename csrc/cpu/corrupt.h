// SPDX-License-Identifier: Apache-2.0
// corrupt, blur and step (args.h): out = keep * add + IDCT2(mask * DCT2(source)) + noise_std * n.
#pragma once

#include "gains.h"
#include "runs.h"

namespace softdiff::SOFTDIFF_ISA {

// mask * DCT2(source) into p.s, but for the last pass; how many rows of it are left.
inline int64_t corrupt_spectrum(Plane& p, const CorruptArgs& a, const Heat& heat, int64_t b, int64_t c, bool again) {
  const Mask mask = corrupt_gains(p, heat, again);
  if (is_plain(a.source)) {
    columns_forward(p, mask.rows, plane_start(a.source, b, c), a.source.stride[2]);
  } else {
    stage(p, a.source, Image{}, b, c);
    columns_forward(p, mask.rows);
  }
  if (mask.terms == 1) {
    rows_mask<1, false>(p, mask.rows, false, 1.0f);
  } else if (mask.terms == 2) {
    rows_mask<2, false>(p, mask.rows, false, 1.0f);
  } else {
    rows_mask<3, false>(p, mask.rows, false, 1.0f);
  }
  return mask.rows;
}

// Whether an image is absent, or its strips can be read or written where they lie.
SD_INLINE bool in_strips(const Plane& p, const Image& image) { return !image || (p.w == p.wp && is_plain(image)); }

// The last pass of the transform with all else that is added, strip by strip. Noise is drawn for four rows of a
// strip at once, whose blocks of the stream are far apart, and goes from registers to the result.
inline void corrupt_strips(Plane& p, const CorruptArgs& a, const Heat& heat, int64_t b, int64_t c, int64_t rows,
                          bool drawn) {
  const float keep = static_cast<float>(heat.keep), noise_std = static_cast<float>(heat.noise_std);
  const Stream stream(key_of(a.key, b));
  const Blocks blocks(static_cast<uint64_t>(p.w / 4));
  float* out = plane_start(a.out, b, c);
  const float* add = a.add ? plane_start(a.add, b, c) : nullptr;
  const float* source = a.residual ? plane_start(a.source, b, c) : nullptr;
  float* residual = a.residual ? plane_start(a.residual, b, c) : nullptr;
  columns_inverse(p, rows, [&](int64_t j, const V* x) {
    for (int64_t i = 0; i < p.h; i += 4) {
      V noise[4] = {};
      if (drawn) normals(stream, blocks, static_cast<uint64_t>((c * p.h + i) * p.w + j) >> 2, noise);
      for (int64_t r = 0; r < 4 && i + r < p.h; ++r) {
        V y = x[i + r];
        if (add != nullptr) y += load(add + (i + r) * a.add.stride[2] + j) * keep;
        y += noise[r] * noise_std;
        store(out + (i + r) * a.out.stride[2] + j, y);
        if (residual == nullptr) continue;
        store(residual + (i + r) * a.residual.stride[2] + j, load(source + (i + r) * a.source.stride[2] + j) - y);
      }
    }
  });
}

inline void corrupt(const CorruptArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w, void* scratch,
                   bool again) {
  Plane p = carve(1, scratch, plan_h, plan_w);
  const Heat heat = heat_of(a, b);
  const float keep = static_cast<float>(heat.keep), noise_std = static_cast<float>(heat.noise_std);
  const bool drawn = !a.noise && a.key.present && noise_std != 0.0f;
  const int terms = (a.add ? 1 : 0) + (a.noise || drawn ? 1 : 0);
  const bool plain = is_plain(a.out);
  if (heat.identity()) {
    // Exactly the input times a number: no transform, whose rounding would show.
    stage(p, a.source, Image{}, b, c, static_cast<float>(heat.reverse ? heat.one_minus_keep : heat.scale));
  } else {
    const int64_t rows = corrupt_spectrum(p, a, heat, b, c, again);
    if (plain && terms == 0 && !a.residual) {
      columns_inverse_to(p, rows, plane_start(a.out, b, c), a.out.stride[2]);
      return;
    }
    if (!a.noise && in_strips(p, a.out) && in_strips(p, a.add) && in_strips(p, a.residual) &&
        (!a.residual || in_strips(p, a.source))) {
      corrupt_strips(p, a, heat, b, c, rows, drawn);
      return;
    }
    columns_inverse_to(p, rows);
  }

  const Stream stream(key_of(a.key, b));
  const int64_t plane_first = c * p.h * p.w;
  const float* noise = nullptr;
  walk(
      p,
      [&](int64_t first, int64_t count) {
        if (drawn) noise = draw(p, stream, plane_first + first, count);
      },
      [&](int64_t i, int64_t j, int64_t n, int64_t at) {
        float* y = p.s + i * p.stride + j;
        float* dst = plain && !a.residual ? plane_start(a.out, b, c) + i * a.out.stride[2] + j : y;
        const auto read = [&](const Image& image, float* spare) {
          return read_row(image, row_offset(image, b, c, i) + j * image.stride[3], n, spare);
        };
        const float* added = a.add ? read(a.add, p.row) : nullptr;
        const float* n_row = drawn ? noise + at : a.noise ? read(a.noise, p.noise) : nullptr;
        if (terms == 2) {
          combine<2>(dst, y, added, keep, n_row, noise_std, n);
        } else if (terms == 1) {
          combine<1>(dst, y, a.add ? added : n_row, a.add ? keep : noise_std, nullptr, 0.0f, n);
        }
        if (a.residual) {
          combine<1>(p.row, read(a.source, p.row), y, -1.0f, nullptr, 0.0f, n);
          write_row(a.residual, row_offset(a.residual, b, c, i) + j * a.residual.stride[3], n, p.row);
        }
        if (terms == 0 || dst == y) write_row(a.out, row_offset(a.out, b, c, i) + j * a.out.stride[3], n, y);
      });
}

}  // namespace softdiff::SOFTDIFF_ISA
