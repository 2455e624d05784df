// SPDX-License-Identifier: Apache-2.0
// The device's arithmetic and bit functions. The approximate ones are as exact as float32 here: what an approximation
// costs must be measured on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace softdiff_shim {

template <class To, class From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

}  // namespace softdiff_shim

inline unsigned __float_as_uint(float v) { return softdiff_shim::bits_as<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return softdiff_shim::bits_as<float>(v); }
inline int __float_as_int(float v) { return softdiff_shim::bits_as<int>(v); }
inline float __int_as_float(int v) { return softdiff_shim::bits_as<float>(v); }

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const uint64_t pair = (static_cast<uint64_t>(high) << 32) | low;
  return static_cast<unsigned>((pair << (shift & 31u)) >> 32);
}

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

// C libraries declare (or will declare) these two names with C linkage; the same linkage and noexcept agree with both.
extern "C" inline float __expf(float v) noexcept { return std::exp(v); }
extern "C" inline float rsqrtf(float v) noexcept { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(v))); }
