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

// The ops' arguments. Each struct has a `read` that takes them from a call of Python's, field by field in the order in
// which softdiff_kernels/backends/compiled.py passes them. `Call` is parse.h's: this header knows no Python.

// How `step` gets its two weights from its arguments `first` and `second`: they are the weights themselves (given), or
// the noise levels noise_std_t and noise_std_s, from which the weights follow, with the large or the small variance.
enum class Rule { given, large, small };

// One kernel, `corrupt`, serves the ops corrupt, blur (corrupt without noise) and step (reverse_step, momentum_step: of
// x0_hat, with the mask of two blurs, plus keep * x_t):
//   out = keep * add + IDCT2(mask * DCT2(source)) + noise_std * n,   residual = source - out.
struct CorruptArgs {
  Shape shape;
  Image source, add, noise, out, residual;
  // mask = scale * ((1 - floor) * (C_s - keep * C_t) + floor * (1 - keep)) with blur_std_s, and
  // C_t only where `reverse` is set; see heat.h.
  bool reverse = false;
  Coefficient blur_std_s, blur_std_t, keep, scale, noise_std{nullptr, DType::float64, 0, 0.0};
  // The rule of a step. momentum: not `given`, so that keep and noise_std follow from noise_std_s and noise_std_t;
  // small_variance: `small`. (As two flags, since kernels get longer by a comparison with the enumeration.)
  bool momentum = false, small_variance = false;
  Coefficient noise_std_s, noise_std_t;
  double floor = 0.0;
  Key key;

  // ("corrupt" or "blur", shape, x0, blur_std, noise_std, scale, floor, key, noise, out, residual)
  template <class Call>
  static CorruptArgs read(Call& call) {
    CorruptArgs a;
    call.name(call.text());
    a.shape = call.shape();
    a.source = call.image();
    a.blur_std_s = call.coefficient("blur_std");
    a.noise_std = call.coefficient("noise_std", 0.0);
    a.scale = call.signed_coefficient("scale");
    a.floor = call.number();
    a.key = call.key();
    a.noise = call.image(), a.out = call.image(), a.residual = call.image();
    return a;
  }

  // (rule, shape, x_t, x0_hat, blur_std_t, blur_std_s, first, second, floor, key, noise, out)
  template <class Call>
  static CorruptArgs read_step(Call& call) {
    CorruptArgs a;
    a.reverse = true;
    const Rule rule = call.rule();
    a.momentum = rule != Rule::given, a.small_variance = rule == Rule::small;
    call.name(a.momentum ? "momentum_step" : "reverse_step");
    a.shape = call.shape();
    a.add = call.image(), a.source = call.image();
    a.blur_std_t = call.coefficient("blur_std_t"), a.blur_std_s = call.coefficient("blur_std_s");
    if (a.momentum) {
      a.noise_std_t = call.coefficient("noise_std_t"), a.noise_std_s = call.coefficient("noise_std_s");
      call.ordered("blur_std_s", a.blur_std_s, "blur_std_t", a.blur_std_t);
      call.ordered("noise_std_s", a.noise_std_s, "noise_std_t", a.noise_std_t);
    } else {
      a.keep = call.signed_coefficient("a"), a.noise_std = call.coefficient("b");
    }
    a.floor = call.number();
    a.key = call.key();
    a.noise = call.image(), a.out = call.image();
    return a;
  }
};

// loss[b] = weight * sum (m * DCT2(prediction - target))^2; gradient = 2 weight IDCT2(m^2 DCT2(...)).
struct SoftScoreLossArgs {
  Shape shape;
  Image prediction, target, gradient;  // gradient may be absent
  Coefficient blur_std, weight;
  double floor = 0.0;
  double gradient_scale = 1.0;
  double* plane_loss = nullptr;  // [B * C]

  // (shape, prediction, target, blur_std, weight, floor, gradient_scale, gradient), then the loss
  template <class Call>
  static SoftScoreLossArgs read(Call& call) {
    SoftScoreLossArgs a;
    a.shape = call.shape();
    a.prediction = call.image(), a.target = call.image();
    a.blur_std = call.coefficient("blur_std"), a.weight = call.coefficient("weight");
    a.floor = call.number(), a.gradient_scale = call.number();
    a.gradient = call.image();
    return a;
  }
};

// The same with any mask, whose broadcast axes have stride 0.
struct SpectralLossArgs {
  Shape shape;
  Image prediction, target, mask, gradient;  // gradient may be absent
  Coefficient weight;
  double gradient_scale = 1.0;
  double* plane_loss = nullptr;  // [B * C]

  // (shape, prediction, target, mask, weight, gradient_scale, gradient), then the loss
  template <class Call>
  static SpectralLossArgs read(Call& call) {
    SpectralLossArgs a;
    a.shape = call.shape();
    a.prediction = call.image(), a.target = call.image(), a.mask = call.image();
    a.weight = call.coefficient("weight");
    a.gradient_scale = call.number();
    a.gradient = call.image();
    return a;
  }
};

// dct2, and idct2 where `inverse` is set.
struct Dct2Args {
  Shape shape;
  Image in, out;
  bool inverse = false;

  // (shape, x, out, inverse)
  template <class Call>
  static Dct2Args read(Call& call) {
    Dct2Args a;
    a.shape = call.shape();
    a.in = call.image(), a.out = call.image();
    a.inverse = call.flag();
    call.name(a.inverse ? "idct2" : "dct2");
    return a;
  }
};

// template: copy this for a new op, and add it to the list below. out = in.
struct IdentityArgs {
  Shape shape;
  Image in, out;

  // (shape, x, out)
  template <class Call>
  static IdentityArgs read(Call& call) {
    IdentityArgs a;
    a.shape = call.shape();
    a.in = call.image(), a.out = call.image();
    return a;
  }
};

// out = IDCT2(sum_k mask_k * DCT2(in_k) + noise_mask * n); a mask's broadcast axes have stride 0.
// n is `noise`, or else the key's.
struct SpectralMixArgs {
  Shape shape;
  int64_t count = 0;
  const Image* in = nullptr;
  const Image* mask = nullptr;
  Image noise_mask, noise, out;
  Key key;

  // (shape, inputs, masks, noise_mask, key, noise, out), as many masks as inputs
  template <class Call>
  static SpectralMixArgs read(Call& call) {
    SpectralMixArgs a;
    a.shape = call.shape();
    a.in = call.images(a.count), a.mask = call.images(a.count);
    a.noise_mask = call.image();
    a.key = call.key();
    a.noise = call.image(), a.out = call.image();
    return a;
  }
};

// The list of the kernels over planes, KERNEL(name, arguments), in this order everywhere: the table of each CPU
// instruction set, both modules' launches and bindings follow from it. (`step` is a second way to call `corrupt`, and
// `normal`, which has no planes, goes its own.)
#define SOFTDIFF_KERNELS(KERNEL)               \
  KERNEL(corrupt, CorruptArgs)                 \
  KERNEL(soft_score_loss, SoftScoreLossArgs)   \
  KERNEL(spectral_loss, SpectralLossArgs)      \
  KERNEL(dct2, Dct2Args)                       \
  KERNEL(spectral_mix, SpectralMixArgs)        \
  KERNEL(identity, IdentityArgs)

// out[b, e] for e in [0, count): contiguous.
struct NormalArgs {
  int64_t b = 0, count = 0;
  Image out;
  Key key;

  // (batch, count, key, out)
  template <class Call>
  static NormalArgs read(Call& call) {
    NormalArgs a;
    a.b = call.size(), a.count = call.size();
    a.key = call.key();
    a.out = call.image();
    return a;
  }
};

}  // namespace softdiff
