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

// ldmatrix of rows that other lanes of the warp wrote.
__global__ void warp_rows_kernel(bool synchronised, uint32_t* out) {
  ptx::Arena arena;
  auto* rows = arena.take<uint4>(32);
  const unsigned t = threadIdx.x, word = t * 0x10001u;
  rows[t] = make_uint4(word, word, word, word);
  if (synchronised) __syncwarp();
  uint32_t r[4];
  ptx::ldmatrix_x4(r, rows + (t ^ 1u));
  for (int i = 0; i < 4; ++i) out[t * 4 + i] = r[i];
}

// Two stages of copies in flight; each stage comes out backwards. `early` waits for one group too few; `barrier` keeps
// the next copy from starting before all have read what it overwrites.
__global__ void copy_kernel(const float4* in, int stages, bool early, bool barrier, float4* out) {
  ptx::Arena arena;
  const unsigned n = blockDim.x, t = threadIdx.x;
  float4* shared = arena.take<float4>(static_cast<int>(2 * n));
  ptx::cp_async16(shared + t, in + t);
  ptx::cp_async_commit();
  for (int stage = 0; stage < stages; ++stage) {
    const unsigned next = static_cast<unsigned>(stage) + 1;
    if (next < static_cast<unsigned>(stages)) ptx::cp_async16(shared + next % 2 * n + t, in + next * n + t);
    ptx::cp_async_commit();
    if (early) {
      ptx::cp_async_wait<2>();
    } else {
      ptx::cp_async_wait<1>();
    }
    __syncthreads();
    out[static_cast<unsigned>(stage) * n + t] = shared[static_cast<unsigned>(stage) % 2 * n + (n - 1 - t)];
    if (barrier) __syncthreads();
  }
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
void warp_rows(bool synchronised, Address out) {
  launch(warp_rows_kernel, 1, 32, 512, synchronised, at<uint32_t>(out));
}
void copies(Address in, int stages, bool early, bool barrier, Address out, int threads) {
  launch(copy_kernel, 1, static_cast<unsigned>(threads), 32 * threads, at<const float4>(in), stages, early,
         barrier, at<float4>(out));
}
void offsets(Address in, int read, Address out, int write, int shared_at) {
  launch(offset_kernel, 1, 32, 256, at<const float>(in), read, at<float>(out), write, shared_at);
}
