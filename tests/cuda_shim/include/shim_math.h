// SPDX-License-Identifier: Apache-2.0
// The device's arithmetic and bit functions. Approximate ones are off by the most that is documented.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace softdiff_shim {

// Where approximate functions err to: -1 nearer to zero, 1 further from it, 0 not at all.
inline int side = -1;

inline void read_side() {
  const char* variable = std::getenv("SOFTDIFF_SHIM_ERRORS");
  const std::string errors = variable == nullptr ? "down" : variable;
  if (errors != "down" && errors != "up" && errors != "none") {
    throw std::runtime_error("SOFTDIFF_SHIM_ERRORS is '" + errors + "': expected down, up or none");
  }
  side = errors == "down" ? -1 : errors == "up" ? 1 : 0;
}

// The float that is furthest from `exact` to that side, but at most `bound`.
inline float pushed(double exact, double bound) {
  if (exact == 0.0 || !std::isfinite(exact)) return static_cast<float>(exact);
  const double out = exact > 0.0 ? side : -side, limit = exact + out * bound;
  const float result = static_cast<float>(limit);
  return (result - limit) * out > 0.0 ? std::nextafter(result, static_cast<float>(exact)) : result;
}

// `ulps` last bits from the correctly rounded result.
inline float pushed_ulps(double exact, int ulps) {
  const float rounded = static_cast<float>(exact), size = std::fabs(rounded);
  if (size == 0.0f || !std::isfinite(size)) return rounded;
  return pushed(rounded, ulps * (static_cast<double>(std::nextafter(size, INFINITY)) - size));
}

// What .ftz makes of an argument.
inline float flushed(float v) { return std::fabs(v) < 1.17549435e-38f ? std::copysign(0.0f, v) : v; }

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

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
