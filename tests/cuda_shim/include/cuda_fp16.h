// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's header of this name: storage types and explicit conversions only. CUDA's implicit conversions
// and operators are absent, so code that compiles here says every rounding.
#pragma once

#include <cstdint>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "shim_math.h"
#include "shim_types.h"

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

namespace softdiff_shim {

// The conversions in integers: what a machine without F16C uses, and what the tests compare F16C with.
inline uint16_t half_bits_portable(float value) {
  const uint32_t word = bits_as<uint32_t>(value), sign = (word >> 16) & 0x8000u, magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;                                   // the device's NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);    // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {                                                 // below 2^-14: subnormal
    const float scaled = bits_as<float>(magnitude) + 0.5f;  // an ulp of [0.5, 1) is 2^-24, the subnormals' step
    return static_cast<uint16_t>(sign | (bits_as<uint32_t>(scaled) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline float half_value_portable(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_as<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude < 0x400u) {
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return bits_as<float>(sign | bits_as<uint32_t>(value));
  }
  return bits_as<float>(sign | ((magnitude << 13) + 0x38000000u));
}

inline uint16_t half_bits(float value) {
#if defined(__F16C__)
  return value != value ? 0x7fffu : static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#else
  return half_bits_portable(value);
#endif
}

inline float half_value(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  return half_value_portable(bits);
#endif
}

}  // namespace softdiff_shim

inline __half2 __floats2half2_rn(float low, float high) {
  return {{softdiff_shim::half_bits(low)}, {softdiff_shim::half_bits(high)}};
}
inline float2 __half22float2(__half2 v) {
  return {softdiff_shim::half_value(v.x.bits), softdiff_shim::half_value(v.y.bits)};
}
