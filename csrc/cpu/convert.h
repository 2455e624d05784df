// SPDX-License-Identifier: Apache-2.0
// Rows of an image of any dtype and stride, to and from float32.
#pragma once

#include "../args.h"
#include "simd.h"

namespace softdiff::SOFTDIFF_ISA {

SD_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {
    bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x0400u) {
    bits = sign | ((magnitude << 13) + 0x38000000u);
  } else {
    const float tiny = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // subnormal: units of 2^-24
    __builtin_memcpy(&bits, &tiny, 4);
    bits |= sign;
  }
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

// To nearest, ties to even.
SD_INLINE uint16_t float_to_half(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    float shifted;
    __builtin_memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;  // the addition rounds to units of 2^-24
    __builtin_memcpy(&bits, &shifted, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

SD_INLINE float bfloat_to_float(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

SD_INLINE uint16_t float_to_bfloat(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

inline void half_row(const uint16_t* src, float* dst, int64_t n) {
  int64_t i = 0;
#if defined(SOFTDIFF_ISA_AVX512)
  for (; i + 16 <= n; i += 16) {
    _mm512_storeu_ps(dst + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i))));
  }
#elif defined(SOFTDIFF_ISA_AVX2)
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
  }
#endif
  for (; i < n; ++i) dst[i] = half_to_float(src[i]);
}

inline void to_half_row(const float* src, uint16_t* dst, int64_t n) {
  int64_t i = 0;
#if defined(SOFTDIFF_ISA_AVX512)
  for (; i + 16 <= n; i += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i), _mm512_cvtps_ph(_mm512_loadu_ps(src + i), 0));
  }
#elif defined(SOFTDIFF_ISA_AVX2)
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i), _mm256_cvtps_ph(_mm256_loadu_ps(src + i), 0));
  }
#endif
  for (; i < n; ++i) dst[i] = float_to_half(src[i]);
}

// One row's elements as float32: either where they lie, or converted into `spare`.
inline const float* read_row(const Image& image, int64_t offset, int64_t n, float* spare) {
  const int64_t s = image.stride[3];
  switch (image.dtype) {
    case DType::float32: {
      const float* p = static_cast<const float*>(image.data) + offset;
      if (s == 1) return p;
      for (int64_t i = 0; i < n; ++i) spare[i] = p[i * s];
      break;
    }
    case DType::bfloat16: {
      const uint16_t* p = static_cast<const uint16_t*>(image.data) + offset;
      if (s == 1) {
        for (int64_t i = 0; i < n; ++i) spare[i] = bfloat_to_float(p[i]);
      } else {
        for (int64_t i = 0; i < n; ++i) spare[i] = bfloat_to_float(p[i * s]);
      }
      break;
    }
    case DType::float16: {
      const uint16_t* p = static_cast<const uint16_t*>(image.data) + offset;
      if (s == 1) {
        half_row(p, spare, n);
      } else {
        for (int64_t i = 0; i < n; ++i) spare[i] = half_to_float(p[i * s]);
      }
      break;
    }
    case DType::uint8: {
      // Divided, not multiplied by a reciprocal, so that the decoded values are the reference's.
      const uint8_t* p = static_cast<const uint8_t*>(image.data) + offset;
      if (s == 1) {
        for (int64_t i = 0; i < n; ++i) spare[i] = static_cast<float>(p[i]) / 127.5f - 1.0f;
      } else {
        for (int64_t i = 0; i < n; ++i) spare[i] = static_cast<float>(p[i * s]) / 127.5f - 1.0f;
      }
      break;
    }
    case DType::float64: {  // masks alone: float64 images take the reference
      const double* p = static_cast<const double*>(image.data) + offset;
      for (int64_t i = 0; i < n; ++i) spare[i] = static_cast<float>(p[i * s]);
      break;
    }
  }
  return spare;
}

inline void write_row(const Image& image, int64_t offset, int64_t n, const float* values) {
  const int64_t s = image.stride[3];
  if (image.dtype == DType::float32) {
    float* p = static_cast<float*>(image.data) + offset;
    if (s == 1) {
      for (int64_t i = 0; i < n; ++i) p[i] = values[i];
    } else {
      for (int64_t i = 0; i < n; ++i) p[i * s] = values[i];
    }
  } else if (image.dtype == DType::bfloat16) {
    uint16_t* p = static_cast<uint16_t*>(image.data) + offset;
    if (s == 1) {
      for (int64_t i = 0; i < n; ++i) p[i] = float_to_bfloat(values[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) p[i * s] = float_to_bfloat(values[i]);
    }
  } else {
    uint16_t* p = static_cast<uint16_t*>(image.data) + offset;
    if (s == 1) {
      to_half_row(values, p, n);
    } else {
      for (int64_t i = 0; i < n; ++i) p[i * s] = float_to_half(values[i]);
    }
  }
}

SD_INLINE int64_t row_offset(const Image& image, int64_t b, int64_t c, int64_t i) {
  return b * image.stride[0] + c * image.stride[1] + i * image.stride[2];
}

}  // namespace softdiff::SOFTDIFF_ISA
