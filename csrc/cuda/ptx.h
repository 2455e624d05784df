// SPDX-License-Identifier: Apache-2.0
// The instructions that CUDA C++ has no name for, and shared memory. Everything else in this folder is plain
// C++, so that tests/cuda_shim can run it on a CPU with its own twins of these.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define SOFTDIFF_DEVICE __device__ __forceinline__

namespace softdiff::cuda {
// What is being compiled for, 90 for sm_90; 0 on the host. For register bounds, which ptxas keeps better on some than others.
#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__ / 10;
#else
constexpr int kArchitecture = 0;
#endif
}  // namespace softdiff::cuda

#ifdef SOFTDIFF_CUDA_SHIM
#include <shim_ptx.h>
#else

namespace softdiff::cuda {

SOFTDIFF_DEVICE float sqrt_approx(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

SOFTDIFF_DEVICE float lg2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to float64's digits, where neither is denormal, without the branches of a division: x is approximated to 20 bits.
SOFTDIFF_DEVICE double reciprocal(double x) {
  double y;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  y = fma(fma(-x, y, 1.0), y, y);
  return fma(fma(-x, y, 1.0), y, y);
}

// Hands out dynamic shared memory. Every thread of a block makes the same calls; `room` counts what they take.
struct Arena {
  char* at;
  SOFTDIFF_DEVICE Arena() {
    extern __shared__ __align__(128) char arena[];
    at = arena;
  }
  template <class T>
  SOFTDIFF_DEVICE T* take(int count) {
    T* out = reinterpret_cast<T*>(at);
    at += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
    return out;
  }
};

}  // namespace softdiff::cuda

#endif

namespace softdiff::cuda {

// Keeps what follows from x where it stands: moved ahead of a loop or a product, it would hold registers there.
SOFTDIFF_DEVICE int here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

template <class T>
inline size_t room(int64_t count) {
  return static_cast<size_t>((count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16);
}

SOFTDIFF_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(0xFFFFFFFFu, x, i);
  return x;
}

// The sum of the warps' numbers, in shared memory.
SOFTDIFF_DEVICE double block_sum(const float* of_warps) {
  double sum = 0.0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / 32; ++i) sum += of_warps[i];
  return sum;
}

}  // namespace softdiff::cuda
