// SPDX-License-Identifier: Apache-2.0
// corrupt, blur and step (args.h): out = keep * add + IDCT2(mask * DCT2(source)) + noise_std * n.
#pragma once

#include "gains.h"
#include "runs.h"

namespace softdiff::SOFTDIFF_ISA {

// mask * DCT2(source) into p.s, but for the last pass.
inline void corrupt_spectrum(Plane& p, const CorruptArgs& a, const Heat& heat, const Ahead& ahead, int64_t b, int64_t c,
                             bool again) {
  const Mask mask = corrupt_gains(p, heat, again);
  columns_forward_of(p, ahead, a.source, b, c);
  if (mask.terms == 1) {
    rows_mask<1, false>(p, mask.rows, false, 1.0f);
  } else if (mask.terms == 2) {
    rows_mask<2, false>(p, mask.rows, false, 1.0f);
  } else {
    rows_mask<3, false>(p, mask.rows, false, 1.0f);
  }
}

// Whether an image is absent, or its strips can be read or written where they lie.
SD_INLINE bool in_strips(const Image& image) { return !image || is_plain(image); }

// The last pass of the transform with all else that is added, strip by strip. Noise is drawn for four rows of a
// strip at once, whose blocks of the stream are far apart, and goes from registers to the result.
inline void corrupt_strips(Plane& p, const CorruptArgs& a, const Heat& heat, const Ahead& ahead, int64_t b, int64_t c,
                           bool drawn) {
  const float keep = static_cast<float>(heat.keep), noise_std = static_cast<float>(heat.noise_std);
  const Stream stream(key_of(a.key, b));
  const Blocks blocks(static_cast<uint64_t>(p.w / 4));
  float* out = plane_start(a.out, b, c);
  const float* add = a.add ? plane_start(a.add, b, c) : nullptr;
  const float* source = a.residual ? plane_start(a.source, b, c) : nullptr;
  float* residual = a.residual ? plane_start(a.residual, b, c) : nullptr;
  columns_inverse(p, ahead, [&](int64_t j, const V* x) {
    const auto finish = [&](auto read, auto write) SD_LAMBDA {
      const auto some = [&](int64_t i, auto groups) SD_LAMBDA {
        V noise[4 * groups.value] = {};
        const uint64_t first = static_cast<uint64_t>((c * p.h + i) * p.w + j) >> 2;
        if (drawn) normals<groups.value>(stream, blocks, first, static_cast<uint64_t>(p.w), noise);
        for (int64_t r = 0; r < 4 * groups.value && i + r < p.h; ++r) {
          V y = x[i + r];
          if (add != nullptr) y += read(add + (i + r) * a.add.stride[2] + j) * keep;
          y += noise[r] * noise_std;
          write(out + (i + r) * a.out.stride[2] + j, y);
          if (residual == nullptr) continue;
          const V from = read(source + (i + r) * a.source.stride[2] + j);
          write(residual + (i + r) * a.residual.stride[2] + j, from - y);
        }
      };
      int64_t i = 0;
      for (; i + 4 < p.h; i += 8) some(i, Count<2>{});
      if (i < p.h) some(i, Count<1>{});
    };
    const int64_t n = p.w - j;
    if (n >= VL) {
      finish([](const float* at) SD_LAMBDA { return load(at); }, [](float* at, V v) SD_LAMBDA { store(at, v); });
    } else {
      finish([n](const float* at) SD_LAMBDA { return load_part(at, n); },
             [n](float* at, V v) SD_LAMBDA { store_part(at, n, v); });
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
    // Noise takes so long that stores need no help.
    const Ahead ahead = drawn ? Ahead() : ahead_of(p, a.out, b, c);
    corrupt_spectrum(p, a, heat, ahead, b, c, again && c > 0);
    if (plain && terms == 0 && !a.residual) {
      columns_inverse_to(p, plane_start(a.out, b, c), a.out.stride[2]);
      return;
    }
    // In rows of whole blocks of noise, so that each row of a strip begins with one.
    if (!a.noise && p.w % 4 == 0 && plain && in_strips(a.add) && in_strips(a.residual) &&
        (!a.residual || is_plain(a.source))) {
      corrupt_strips(p, a, heat, ahead, b, c, drawn);
      return;
    }
    columns_inverse_to(p);
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
