// SPDX-License-Identifier: Apache-2.0
// The instructions that CUDA C++ has no name for, and shared memory. Everything else in this folder is plain
// C++, so that tests/cuda_shim can run it on a CPU with its own twins of these.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define SOFTDIFF_DEVICE __device__ __forceinline__

#ifdef SOFTDIFF_CUDA_SHIM
#include <shim_ptx.h>
#else

namespace softdiff::cuda {

// d += a b: 16 x 8 x 16, float16 in, float32 accumulated. Volatile, since it must not move into a branch that only
// some lanes take.
SOFTDIFF_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

SOFTDIFF_DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// Four 8 x 8 tiles of float16; lanes 8 i to 8 i + 7 name the rows of tile i.
SOFTDIFF_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

SOFTDIFF_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

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

// A barrier of a cluster's threads in two halves, by whole warps; what was written before the first is seen after the
// second. For sm_90 and later, as all about clusters.
SOFTDIFF_DEVICE void cluster_arrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" : : : "memory");
}
SOFTDIFF_DEVICE void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
}

// The same place in the shared memory of the cluster's block `rank`.
template <class T>
SOFTDIFF_DEVICE T* in_block(T* shared, int rank) {
  T* there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
  return there;
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

}  // namespace softdiff::cuda
