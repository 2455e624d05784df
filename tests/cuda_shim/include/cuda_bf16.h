// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's header of this name: the storage type and its two conversions.
#pragma once

#include <cstdint>

#include "shim_math.h"

struct __nv_bfloat16 {
  uint16_t bits;
};

inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const uint32_t word = softdiff_shim::bits_as<uint32_t>(v);
  if ((word & 0x7fffffffu) > 0x7f800000u) return {0x7fffu};  // the device's NaN
  return {static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16)};
}
inline float __bfloat162float(__nv_bfloat16 v) {
  return softdiff_shim::bits_as<float>(static_cast<uint32_t>(v.bits) << 16);
}
