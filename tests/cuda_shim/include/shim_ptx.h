// SPDX-License-Identifier: Apache-2.0
// The instructions of csrc/cuda/ptx.h, and shared memory, executed by the shim.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "shim_device.h"
#include "shim_math.h"

namespace softdiff_shim {

void mma_f16(Site site, float* d, const uint32_t* a, uint32_t b0, uint32_t b1);
void ldmatrix_x4(Site site, uint32_t* r, const void* row, bool transposed);
uint32_t movmatrix_trans(Site site, uint32_t x);
void* take_shared(Site site, int index, size_t bytes);
void cp_async16(Site site, void* shared, const void* global);
void cp_async_commit();
void cp_async_wait(int groups_left);
void cluster_arrive(Site site);
void cluster_wait(Site site);
void* in_block(Site site, void* address, int rank);

}  // namespace softdiff_shim

namespace softdiff::cuda {

inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, SOFTDIFF_SHIM_HERE) {
  softdiff_shim::mma_f16({"mma_f16", file, line}, d, a, b0, b1);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, SOFTDIFF_SHIM_HERE) {
  softdiff_shim::ldmatrix_x4({"ldmatrix_x4", file, line}, r, row, false);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, SOFTDIFF_SHIM_HERE) {
  softdiff_shim::ldmatrix_x4({"ldmatrix_x4_trans", file, line}, r, row, true);
}
inline uint32_t movmatrix_trans(uint32_t x, SOFTDIFF_SHIM_HERE) {
  return softdiff_shim::movmatrix_trans({"movmatrix_trans", file, line}, x);
}

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
inline float expf(float v) { return v == 0.0f ? 1.0f : softdiff_shim::pushed_ulps(std::exp(double{v}), 2); }
inline float exp2f(float v) { return v == 0.0f ? 1.0f : softdiff_shim::pushed_ulps(std::exp2(double{v}), 2); }
inline float expm1f(float v) {
  return std::isinf(v) ? std::expm1(v) : softdiff_shim::pushed_ulps(std::expm1(double{v}), 1);
}

inline void cp_async16(void* shared, const void* global, SOFTDIFF_SHIM_HERE) {
  softdiff_shim::cp_async16({"cp_async16", file, line}, shared, global);
}
inline void cp_async_commit() { softdiff_shim::cp_async_commit(); }
template <int N>
void cp_async_wait() {
  softdiff_shim::cp_async_wait(N);
}

inline void cluster_arrive(SOFTDIFF_SHIM_HERE) { softdiff_shim::cluster_arrive({"cluster_arrive", file, line}); }
inline void cluster_wait(SOFTDIFF_SHIM_HERE) { softdiff_shim::cluster_wait({"cluster_wait", file, line}); }
template <class T>
T* in_block(T* shared, int rank, SOFTDIFF_SHIM_HERE) {
  return static_cast<T*>(softdiff_shim::in_block({"in_block", file, line}, shared, rank));
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
