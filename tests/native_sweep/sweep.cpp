// SPDX-License-Identifier: Apache-2.0
// Every op of the CPU kernels on awkward sizes, strides and dtypes, for the sanitizers: each image lies in memory
// that is exactly as long as it reaches. Also compares each instruction set with the portable one.
//   sweep [SIDE ...]
#include "cpu/driver.h"
#include "cpu/plan_cache.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace softdiff;

namespace {

enum Layout { contiguous, channels_last, sliced, expanded, kLayouts };

size_t size_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : dtype == DType::uint8 ? 1 : 2;
}

// An image and its memory. Filled with numbers near 1 in its dtype, or, to be written, with bytes of 0xff: NaN.
struct Held {
  std::unique_ptr<char[]> memory;
  Image image;
  int64_t elements = 0;

  Held(const Shape& s, DType dtype, Layout layout, unsigned seed, bool written = false) {
    int64_t* stride = image.stride;
    const int64_t w = layout == sliced ? s.w + 3 : s.w;
    stride[3] = 1, stride[2] = w, stride[1] = s.h * w, stride[0] = s.c * s.h * w;
    if (layout == channels_last) stride[3] = s.c, stride[2] = s.w * s.c, stride[1] = 1;
    if (layout == expanded) stride[0] = 0, stride[2] = 0;
    elements = 1 + (s.b - 1) * stride[0] + (s.c - 1) * stride[1] + (s.h - 1) * stride[2] + (s.w - 1) * stride[3];
    const size_t size = size_of(dtype);
    memory.reset(new char[static_cast<size_t>(elements) * size]);
    image.data = memory.get(), image.dtype = dtype;
    std::memset(memory.get(), 0xff, static_cast<size_t>(elements) * size);
    for (int64_t e = 0; e < elements && !written; ++e) {
      seed = seed * 1664525u + 1013904223u;
      const double number = 0.5 + (seed >> 20) / 4096.0;
      const float single = static_cast<float>(number);
      const uint16_t bf = 0x3f00 | (seed >> 25), half = 0x3800 | (seed >> 23);
      const uint8_t byte = seed >> 24;
      const void* from = dtype == DType::float64    ? static_cast<const void*>(&number)
                         : dtype == DType::float32  ? static_cast<const void*>(&single)
                         : dtype == DType::bfloat16 ? static_cast<const void*>(&bf)
                         : dtype == DType::float16  ? static_cast<const void*>(&half)
                                                    : static_cast<const void*>(&byte);
      std::memcpy(memory.get() + static_cast<size_t>(e) * size, from, size);
    }
  }

  double at(int64_t e) const {
    if (image.dtype == DType::float32) return reinterpret_cast<const float*>(memory.get())[e];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(memory.get())[e];
    if (image.dtype == DType::bfloat16) {
      const uint32_t wide = static_cast<uint32_t>(bits) << 16;
      float out;
      std::memcpy(&out, &wide, 4);
      return out;
    }
    const double fraction = bits & 1023, sign = bits >> 15 ? -1.0 : 1.0;
    const int exponent = bits >> 10 & 31;
    if (exponent == 31) return NAN;
    return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25));
  }
};

using Results = std::vector<double>;

void gather(Results& to, const Shape& s, const Held& out) {
  for (int64_t b = 0; b < s.b; ++b) {
    for (int64_t c = 0; c < s.c; ++c) {
      for (int64_t i = 0; i < s.h; ++i) {
        for (int64_t j = 0; j < s.w; ++j) {
          const int64_t* stride = out.image.stride;
          to.push_back(out.at(b * stride[0] + c * stride[1] + i * stride[2] + j * stride[3]));
        }
      }
    }
  }
}

Results all_ops(const Shape& s, DType dtype, Layout layout, Layout written) {
  Results results;
  const DType result = dtype == DType::uint8 ? DType::float32 : dtype;
  const Held x(s, dtype, layout, 1), y(s, result, layout, 2), noise(s, result, layout, 3);
  std::vector<double> blur(static_cast<size_t>(s.b)), few(blur.size());
  for (size_t b = 0; b < blur.size(); ++b) blur[b] = b == 1 ? 0.0 : 0.7 + 3.0 * b, few[b] = 0.1 + 0.2 * b;
  const Coefficient blurs{blur.data(), DType::float64, 1}, fews{few.data(), DType::float64, 1};
  const std::vector<int64_t> rows(3 * blur.size(), -7);
  Key number, table;
  number.present = table.present = true;
  number.seed = number.stream = number.draw = -1;
  table.rows = rows.data(), table.count = s.b;
  for (int form = 0; form < 4; ++form) {
    CorruptArgs a;
    a.shape = s;
    const Held out(s, result, written, 0, true), residual(s, result, written, 0, true);
    a.source = x.image, a.out = out.image;
    a.blur_std_s = blurs, a.noise_std = fews;
    a.floor = form % 2 * 0.1;
    if (form == 0 || form == 3) a.key = form == 0 ? number : table;
    if (form == 1) a.noise = noise.image;
    if (form <= 1) a.residual = residual.image;
    if (form >= 2) {
      a.reverse = true;
      a.add = y.image;
      a.blur_std_t = {nullptr, DType::float64, 0, form == 2 ? 9.0 : 0.2};
      a.momentum = form == 2;
      a.keep = {nullptr, DType::float64, 0, 0.6};
      a.noise_std_t = {nullptr, DType::float64, 0, 0.7}, a.noise_std_s = {nullptr, DType::float64, 0, 0.4};
    }
    run(a, 1);
    gather(results, s, out);
    if (form <= 1) gather(results, s, residual);
  }
  for (bool inverse : {false, true}) {
    const Held out(s, result, written, 0, true);
    Dct2Args a;
    a.shape = s, a.in = x.image, a.out = out.image, a.inverse = inverse;
    run(a, 1);
    gather(results, s, out);
  }
  // A mask for each channel, and one for all planes.
  const Held mask(s, DType::float64, expanded, 4), line(s, DType::float32, expanded, 5);
  Image shared = line.image;
  shared.stride[1] = 0;
  for (int form = 0; form < 2; ++form) {
    const auto loss = [&](auto a) {
      const Held gradient(s, result, written, 0, true);
      std::vector<double> planes(static_cast<size_t>(s.b * s.c));
      a.shape = s, a.prediction = x.image, a.target = y.image, a.weight = fews;
      if (form == 0) a.gradient = gradient.image;
      a.plane_loss = planes.data();
      run(a, 1);
      if (form == 0) gather(results, s, gradient);
      results.insert(results.end(), planes.begin(), planes.end());
    };
    SoftScoreLossArgs soft;
    soft.blur_std = blurs, soft.floor = form * 0.2;
    loss(soft);
    SpectralLossArgs spectral;
    spectral.mask = form == 0 ? shared : mask.image;
    loss(spectral);
  }
  for (int form = 0; form < 2; ++form) {
    const Held out(s, result, written, 0, true);
    const Image inputs[] = {x.image, y.image}, masks[] = {mask.image, shared};
    SpectralMixArgs a;
    a.shape = s, a.count = 2, a.in = inputs, a.mask = masks, a.noise_mask = line.image, a.out = out.image;
    if (form == 0) a.key = table;
    if (form == 1) a.noise = noise.image;
    run(a, 1);
    gather(results, s, out);
  }
  {
    const Held out(s, result, contiguous, 0, true);
    NormalArgs a;
    a.b = s.b, a.count = s.c * s.h * s.w, a.out = out.image, a.key = number;
    run(a, 1);
    gather(results, s, out);
  }
  return results;
}

bool close(const Results& got, const Results& expected, double bound) {
  double error = 0.0, size = 0.0;
  for (size_t e = 0; e < expected.size(); ++e) {
    error += (got[e] - expected[e]) * (got[e] - expected[e]);
    size += expected[e] * expected[e];
  }
  return error <= bound * bound * size;  // false for NaN
}

bool sweep(const Shape& s, DType dtype, Layout layout, Layout written) {
  Results expected;
  // The roundings of the results, beside those of two float32 transforms.
  const double bound = dtype == DType::bfloat16 ? 8e-3 : dtype == DType::float16 ? 1e-3 : 1e-5;
  for (const char* name : {"portable", "avx2", "avx512"}) {
    if (!use_instruction_set(name)) continue;
    const Results got = all_ops(s, dtype, layout, written);
    if (expected.empty()) expected = got;
    if (close(got, expected, bound)) continue;
    std::printf("%s differs: %dx%dx%dx%d, dtype %d, layouts %d, %d\n", name, int(s.b), int(s.c), int(s.h), int(s.w),
                int(dtype), layout, written);
    return false;
  }
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<int64_t> sides;
  for (int i = 1; i < count; ++i) sides.push_back(std::atoll(arguments[i]));
  if (sides.empty()) sides = {1, 2, 3, 5, 7, 17, 28, 31, 33, 64, 99, 353, 706};
  const DType dtypes[] = {DType::float32, DType::bfloat16, DType::float16, DType::uint8};
  for (size_t i = 0; i < sides.size(); ++i) {
    // Each side with itself where small, and with another one.
    for (const int64_t other : {sides[i] > 64 ? int64_t{3} : sides[i], sides[(i * 5 + 2) % sides.size()] % 64 + 1}) {
      for (int d = 0; d < 4; ++d) {
        for (int layout = 0; layout < kLayouts; ++layout) {
          const auto written = static_cast<Layout>((layout + d) % expanded);
          const auto read = static_cast<Layout>(layout);
          // All forms on short square planes, a few of them on the others.
          if ((sides[i] > 64 || other != sides[i]) && layout != d) continue;
          const bool upright = sweep({2, 3, sides[i], other}, dtypes[d], read, written);
          if (!upright || !sweep({2, 1, other, sides[i]}, dtypes[d], read, written)) return 1;
        }
      }
    }
  }
  // A side beyond all bounds, and a plan larger than the cache.
  set_cache_limit(1000);
  if (!sweep({1, 1, 65, 706}, DType::float32, contiguous, contiguous) || cache_bytes() > 1000) return 1;
  Dct2Args absurd;
  absurd.shape = {1, 1, kLongestSide + 1, 1};
  try {
    run(absurd, 1);
    return 1;
  } catch (const std::exception&) {
  }
  std::puts("right");
}
