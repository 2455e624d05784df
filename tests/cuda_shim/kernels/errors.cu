// SPDX-License-Identifier: Apache-2.0
// One mistake a case, by name. test_cuda_shim_mistakes.py names the sentence that each must raise.
#include <cuda_runtime.h>
#include <shim_ptx.h>

#include <string>

#include "kernels.h"

namespace {

namespace ptx = softdiff::cuda;
constexpr unsigned kAll = 0xffffffffu;

__global__ void diverged_shuffles(int* out) {
  int value = static_cast<int>(threadIdx.x);
  if (value < 16) {
    value = __shfl_xor_sync(kAll, value, 1);
  } else {
    value = __shfl_xor_sync(kAll, value, 2);
  }
  out[threadIdx.x] = value;
}

__global__ void lane_left(int* out) {
  if (threadIdx.x == 37) return;
  out[threadIdx.x] = __any_sync(kAll, 1);
}

__global__ void lane_left_first(int* out) {
  if (threadIdx.x == 32) return;
  out[threadIdx.x] = __any_sync(kAll, 1);
}

__global__ void barrier_missed(int*) {
  if (threadIdx.x == 63) return;
  __syncthreads();
}

__global__ void barrier_missed_by_first(int*) {
  if (threadIdx.x == 0) return;
  __syncthreads();
}

__global__ void two_barriers(int*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_and_warp(int*) {
  if (threadIdx.x % 32 < 16) {
    __syncthreads();
  } else {
    __any_sync(kAll, 1);
  }
}

__global__ void warp_and_barrier(int*) {
  if (threadIdx.x % 32 < 16) {
    __any_sync(kAll, 1);
  } else {
    __syncthreads();
  }
}

__global__ void half_a_mask(int*) { __any_sync(0xffffu, 1); }

__global__ void shared_too_big(int*) {
  ptx::Arena arena;
  arena.take<float>(100);
  arena.take<char>(1);
}

__global__ void shared_mismatch(int*) {
  ptx::Arena arena;
  arena.take<float>(threadIdx.x == 40 ? 9 : 8);
}

__global__ void negative_count(int*) {
  ptx::Arena arena;
  arena.take<float>(-1);
}

__global__ void beyond_the_warp(int* out) { out[threadIdx.x] = __shfl_xor_sync(kAll, 1, 32); }

__global__ void thrown(int*) { throw std::out_of_range("a table's end"); }

struct Case {
  const char* name;
  void (*kernel)(int*);
};

#define CASE(kernel) {#kernel, kernel}
constexpr Case kCases[] = {
    CASE(diverged_shuffles), CASE(lane_left),        CASE(lane_left_first), CASE(barrier_missed),
    CASE(two_barriers),      CASE(barrier_and_warp), CASE(warp_and_barrier), CASE(half_a_mask),
    CASE(shared_too_big),    CASE(shared_mismatch),  CASE(negative_count),  CASE(barrier_missed_by_first),
    CASE(beyond_the_warp),   CASE(thrown),
};

}  // namespace

void mistake(const std::string& name, Address out) {
  for (const Case& c : kCases)
    if (name == c.name) return launch(c.kernel, dim3(2, 2), 64, 400, at<int>(out));
  throw std::out_of_range(name);
}
