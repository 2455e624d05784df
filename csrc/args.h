// SPDX-License-Identifier: Apache-2.0
// Plain structs of pointers, sizes and strides: all that the bindings and the kernels share.
#pragma once

#include "host_device.h"

#include <cstdint>

namespace softdiff {

enum class DType : int32_t { float64 = 0, float32 = 1, bfloat16 = 2, float16 = 3, uint8 = 4 };

// A batch of images [B, C, H, W]; strides in elements, of any sign or zero.
struct Image {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t stride[4] = {0, 0, 0, 0};
  SOFTDIFF_HD explicit operator bool() const { return data != nullptr; }
};

struct Shape {
  int64_t b = 0, c = 0, h = 0, w = 0;
};

// One number for the batch (in memory with stride 0, or here without memory) or one a sample; float32 or float64.
struct Coefficient {
  const void* data = nullptr;
  DType dtype = DType::float64;
  int64_t stride = 0;
  double number = 1.0;  // where there is no memory
  SOFTDIFF_HD double at(int64_t b) const {
    if (data == nullptr) return number;
    return dtype == DType::float64 ? static_cast<const double*>(data)[b * stride]
                                   : static_cast<double>(static_cast<const float*>(data)[b * stride]);
  }
};

// The noise stream's key: one row (sample b uses stream + b), or a row a sample.
struct Key {
  bool present = false;
  int64_t seed = 0, stream = 0, draw = 0;
  const int64_t* rows = nullptr;  // [count, 3], contiguous; overrides the three numbers
  int64_t count = 0;
};

struct ImageKey {
  uint64_t seed, stream;
  uint32_t draw;
};

SOFTDIFF_HD ImageKey key_of(const Key& key, int64_t b) {
  int64_t seed = key.seed, stream = key.stream, draw = key.draw, offset = b;
  if (key.rows != nullptr) {
    const int64_t* row = key.rows + (key.count == 1 ? 0 : 3 * b);
    seed = row[0], stream = row[1], draw = row[2];
    offset = key.count == 1 ? b : 0;
  }
  return {static_cast<uint64_t>(seed), static_cast<uint64_t>(stream) + static_cast<uint64_t>(offset),
          static_cast<uint32_t>(draw)};
}

// blur, corrupt, reverse_step and momentum_step are one thing:
//   out = keep * add + IDCT2(mask * DCT2(source)) + noise_std * n,   residual = source - out.
struct FilterArgs {
  Shape shape;
  Image source, add, noise, out, residual;
  // mask = scale * ((1 - floor) * (C_s - keep * C_t) + floor * (1 - keep)) with blur_std_s, and
  // C_t only where `reverse` is set; see heat.h.
  bool reverse = false;
  Coefficient blur_std_s, blur_std_t, keep, scale, noise_std{nullptr, DType::float64, 0, 0.0};
  // Momentum: keep and noise_std follow from the two noise levels.
  bool momentum = false, small_variance = false;
  Coefficient noise_std_s, noise_std_t;
  double floor = 0.0;
  Key key;
};

// loss[b] = weight * sum (m * DCT2(prediction - target))^2; gradient = 2 weight IDCT2(m^2 DCT2(...)).
struct LossArgs {
  Shape shape;
  Image prediction, target, gradient;  // gradient may be absent
  Coefficient blur_std, weight;
  double floor = 0.0;
  double gradient_scale = 1.0;
  double* plane_loss = nullptr;  // [B * C]
};

struct TransformArgs {
  Shape shape;
  Image in, out;
  bool inverse = false;
};

// out = IDCT2(sum_k mask_k * DCT2(in_k) + noise_mask * n); a mask's broadcast axes have stride 0.
struct MixArgs {
  Shape shape;
  int64_t count = 0;
  const Image* in = nullptr;
  const Image* mask = nullptr;
  Image noise_mask, out;
  Key key;
};

// out[b, e] for e in [0, count): contiguous.
struct NormalArgs {
  int64_t b = 0, count = 0;
  Image out;
  Key key;
};

}  // namespace softdiff
