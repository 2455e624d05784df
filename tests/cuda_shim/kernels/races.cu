// SPDX-License-Identifier: Apache-2.0
// Threads that exchange numbers through shared memory, with the synchronisation that this needs or without.
#include <cuda_runtime.h>
#include <shim_ptx.h>

#include "kernels.h"

namespace {

namespace ptx = softdiff::cuda;

// out[t] = t + step, where there is such a thread.
__global__ void neighbour_kernel(int step, bool synchronised, int* out) {
  ptx::Arena arena;
  const int n = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x), other = t + step;
  int* shared = arena.take<int>(n);
  shared[t] = t;
  if (synchronised) __syncthreads();
  out[t] = other >= 0 && other < n ? shared[other] : 0;
}

// Each warp sums what all threads wrote, over and over into the same array: the second barrier keeps a warp that is
// ahead from overwriting what another still has to read. out[t] = the sum over rounds r and threads u of r * u.
__global__ void rounds_kernel(int rounds, bool synchronised, int* out) {
  ptx::Arena arena;
  const int n = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
  int* shared = arena.take<int>(n);
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    shared[t] = round * t;
    __syncthreads();
    for (int i = t % 32; i < n; i += 32) sum += shared[i];
    if (synchronised) __syncthreads();
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  out[t] = sum;
}

// Global and shared accesses at a chosen offset, for ASan.
__global__ void offset_kernel(const float* in, int read, float* out, int write, int shared_at) {
  ptx::Arena arena;
  float* first = arena.take<float>(32);
  float* second = arena.take<float>(32);
  const int t = static_cast<int>(threadIdx.x);
  first[t] = in[t + read];
  second[t] = 0.0f;
  __syncthreads();
  out[t + write] = second[shared_at + t] + first[t];
}

}  // namespace

void neighbour(int step, bool synchronised, Address out, int threads) {
  launch(neighbour_kernel, 1, static_cast<unsigned>(threads), 4 * threads, step, synchronised, at<int>(out));
}
void rounds(int count, bool synchronised, Address out, int threads) {
  launch(rounds_kernel, 1, static_cast<unsigned>(threads), 4 * threads, count, synchronised, at<int>(out));
}
void offsets(Address in, int read, Address out, int write, int shared_at) {
  launch(offset_kernel, 1, 32, 256, at<const float>(in), read, at<float>(out), write, shared_at);
}
