// SPDX-License-Identifier: Apache-2.0
// The instructions of csrc/cuda/ptx.h, and shared memory, executed by the shim.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "shim_device.h"
#include "shim_math.h"

namespace softdiff_shim {

void* take_shared(Site site, int index, size_t bytes);

}  // namespace softdiff_shim

namespace softdiff::cuda {

// PTX ISA 9.1, sections 9.7.3.15 and 9.7.3.20: relative, but for log2 from 0.5 to 2.
inline float sqrt_approx(float v) {
  const double exact = std::sqrt(double{softdiff_shim::flushed(v)});
  return softdiff_shim::pushed(exact, exact * 0x1p-23);
}
inline float lg2_approx(float v) {
  const double exact = std::log2(double{softdiff_shim::flushed(v)});
  return softdiff_shim::pushed(exact, std::fmax(1.0, std::fabs(exact)) * 0x1p-22);
}

inline double reciprocal(double v) { return 1.0 / v; }

// CUDA C++ Programming Guide, single-precision functions, without -use_fast_math; roots and quotients are exact to the
// last bit there. In this namespace they come before the C library's.
inline float exp2f(float v) { return v == 0.0f ? 1.0f : softdiff_shim::pushed_ulps(std::exp2(double{v}), 2); }
inline float expm1f(float v) {
  return std::isinf(v) ? std::expm1(v) : softdiff_shim::pushed_ulps(std::expm1(double{v}), 1);
}

// Dynamic shared memory, array by array: every thread makes the same calls and gets the same addresses.
struct Arena {
  explicit Arena() = default;
  template <class T>
  T* take(int count, SOFTDIFF_SHIM_HERE) {
    static_assert(alignof(T) <= 16, "shared arrays are aligned to 16 bytes");
    const size_t bytes = count < 0 ? SIZE_MAX : static_cast<size_t>(count) * sizeof(T);
    return static_cast<T*>(softdiff_shim::take_shared({"Arena::take", file, line}, next_++, bytes));
  }

 private:
  int next_ = 0;
};

}  // namespace softdiff::cuda
