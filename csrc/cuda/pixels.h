// SPDX-License-Identifier: Apache-2.0
// A plane of an image in global memory: four neighbours at a time, any strides, any dtype, as float32.
#pragma once

#include "../args.h"
#include "ptx.h"

namespace softdiff::cuda {

SOFTDIFF_DEVICE int size_of(DType dtype) {
  return dtype == DType::float32 ? 4 : dtype == DType::uint8 ? 1 : dtype == DType::float64 ? 8 : 2;
}

SOFTDIFF_DEVICE float bfloat16_to_float(uint32_t bits) { return __uint_as_float(bits << 16); }

// To nearest, ties to even; a NaN stays one.
SOFTDIFF_DEVICE uint32_t float_to_bfloat16(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return (bits >> 16) | 0x40u;
  return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
}

SOFTDIFF_DEVICE uint32_t half2_bits(__half2 x) { return *reinterpret_cast<const uint32_t*>(&x); }
SOFTDIFF_DEVICE __half2 bits_half2(uint32_t x) { return *reinterpret_cast<const __half2*>(&x); }

SOFTDIFF_DEVICE float decode(uint32_t pixel) { return static_cast<float>(pixel) / 127.5f - 1.0f; }

// One dtype's loads and stores: `raw` comes apart from `value`, so that several loads are in flight before the
// first is used.
struct Float32 {
  using Raw = float4;
  static constexpr int kSize = sizeof(Raw) / 4;
  using One = float;
  SOFTDIFF_DEVICE static void value(const Raw& raw, float (&x)[4]) { x[0] = raw.x, x[1] = raw.y, x[2] = raw.z, x[3] = raw.w; }
  SOFTDIFF_DEVICE static float value(One x) { return x; }
  SOFTDIFF_DEVICE static Raw raw(const float (&x)[4]) { return make_float4(x[0], x[1], x[2], x[3]); }
  SOFTDIFF_DEVICE static One raw(float x) { return x; }
};

struct BFloat16 {
  using Raw = uint2;
  static constexpr int kSize = sizeof(Raw) / 4;
  using One = uint16_t;
  SOFTDIFF_DEVICE static void value(const Raw& raw, float (&x)[4]) {
    x[0] = bfloat16_to_float(raw.x), x[1] = __uint_as_float(raw.x & 0xFFFF0000u);
    x[2] = bfloat16_to_float(raw.y), x[3] = __uint_as_float(raw.y & 0xFFFF0000u);
  }
  SOFTDIFF_DEVICE static float value(One x) { return bfloat16_to_float(x); }
  SOFTDIFF_DEVICE static Raw raw(const float (&x)[4]) {
    return make_uint2(float_to_bfloat16(x[0]) | float_to_bfloat16(x[1]) << 16,
                      float_to_bfloat16(x[2]) | float_to_bfloat16(x[3]) << 16);
  }
  SOFTDIFF_DEVICE static One raw(float x) { return static_cast<One>(float_to_bfloat16(x)); }
};

struct Float16 {
  using Raw = uint2;
  static constexpr int kSize = sizeof(Raw) / 4;
  using One = uint16_t;
  SOFTDIFF_DEVICE static void value(const Raw& raw, float (&x)[4]) {
    const float2 low = __half22float2(bits_half2(raw.x)), high = __half22float2(bits_half2(raw.y));
    x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
  }
  SOFTDIFF_DEVICE static float value(One x) { return __half22float2(bits_half2(x)).x; }
  SOFTDIFF_DEVICE static Raw raw(const float (&x)[4]) {
    return make_uint2(half2_bits(__floats2half2_rn(x[0], x[1])), half2_bits(__floats2half2_rn(x[2], x[3])));
  }
  SOFTDIFF_DEVICE static One raw(float x) { return static_cast<One>(half2_bits(__floats2half2_rn(x, 0.0f))); }
};

struct UInt8 {
  using Raw = uint32_t;
  static constexpr int kSize = sizeof(Raw) / 4;
  using One = uint8_t;
  SOFTDIFF_DEVICE static void value(const Raw& raw, float (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = decode(raw >> (8 * i) & 255u);
  }
  SOFTDIFF_DEVICE static float value(One x) { return decode(x); }
};

// `visit` with the dtype's type.
template <class Visit>
SOFTDIFF_DEVICE void with_dtype(DType dtype, Visit visit) {
  if (dtype == DType::float32) {
    visit(Float32{});
  } else if (dtype == DType::bfloat16) {
    visit(BFloat16{});
  } else {
    visit(Float16{});
  }
}

// A plane of an image, which it refers to: strides stay in the kernel's arguments, where they cost no registers.
struct Plane {
  const Image& image;
  char* base;
  bool vectors;  // whether every fourth element of every row is aligned for four of them

  SOFTDIFF_DEVICE Plane(const Image& image_, int b, int c) : image(image_) {
    const int size = size_of(image.dtype);
    base = static_cast<char*>(image.data) + (b * image.stride[0] + c * image.stride[1]) * size;
    const auto bits = reinterpret_cast<uintptr_t>(base) | static_cast<uintptr_t>(image.stride[2] * size);
    vectors = image.stride[3] == 1 && (bits & (4 * size - 1)) == 0;
  }
  template <class Pixel>
  SOFTDIFF_DEVICE Pixel* at(int y, int x, int size) const {
    return reinterpret_cast<Pixel*>(base + (y * image.stride[2] + x * image.stride[3]) * size);
  }
};

// Elements x + first to x + last - 1 of row y; the others are 0. x may lie outside where those do.
template <class T>
SOFTDIFF_DEVICE void read_as(const Plane& p, int y, int x, int first, int last, float (&out)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[i] = first <= i && i < last ? T::value(*p.template at<const typename T::One>(y, x + i, T::kSize)) : 0.0f;
  }
}

SOFTDIFF_DEVICE bool whole(const Plane& p, int x, int first, int last) {
  return p.vectors && first == 0 && last == 4 && (x & 3) == 0;
}

// Calls visit with the type of the plane's pixels.
template <class Visit>
SOFTDIFF_DEVICE void with_pixels(const Plane& p, Visit visit) {
  if (p.image.dtype == DType::uint8) {
    visit(UInt8{});
  } else {
    with_dtype(p.image.dtype, visit);
  }
}

SOFTDIFF_DEVICE void read(const Plane& p, int y, int x, int first, int last, float (&out)[4]) {
  with_pixels(p, [&](auto type) {
    using T = decltype(type);
    if (whole(p, x, first, last)) {
      T::value(*p.template at<const typename T::Raw>(y, x, T::kSize), out);
    } else {
      read_as<T>(p, y, x, first, last, out);
    }
  });
}

SOFTDIFF_DEVICE float read_one(const Image& image, int b, int c, int y, int x) {
  float out[4];
  read(Plane(image, b, c), y, x, 0, 1, out);
  return out[0];
}

SOFTDIFF_DEVICE void write(const Plane& p, int y, int x, int first, int last, const float (&value)[4]) {
  with_dtype(p.image.dtype, [&](auto type) {
    using T = decltype(type);
    if (whole(p, x, first, last)) {
      *p.template at<typename T::Raw>(y, x, T::kSize) = T::raw(value);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first <= i && i < last) *p.template at<typename T::One>(y, x + i, T::kSize) = T::raw(value[i]);
      }
    }
  });
}

}  // namespace softdiff::cuda
