// SPDX-License-Identifier: Apache-2.0
// Each collective once: what went in and what came out, for every lane.
#include <cuda_runtime.h>
#include <shim_ptx.h>

#include "kernels.h"

namespace {

namespace ptx = softdiff::cuda;

// `words` brings 10 words a lane: a[4], b[2], c[4]; d[4] come out.
__global__ void __launch_bounds__(64) mma_kernel(const uint32_t* words, float* out) {
  const uint32_t* mine = words + threadIdx.x * 10;
  uint32_t a[4];
  float d[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i] = mine[i];
    d[i] = __uint_as_float(mine[6 + i]);
  }
  ptx::mma_f16(d, a, mine[4], mine[5]);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];
}

// Four 8x8 matrices of 16-bit numbers, each row where `rows` says (in units of 16 bytes).
__global__ void ldmatrix_kernel(const uint4* matrices, const int* rows, uint32_t* out) {
  ptx::Arena arena;
  auto* shared = arena.take<uint4>(32);
  shared[threadIdx.x] = matrices[threadIdx.x];
  __syncwarp();
  uint32_t plain[4], transposed[4];
  ptx::ldmatrix_x4(plain, shared + rows[threadIdx.x]);
  ptx::ldmatrix_x4_trans(transposed, shared + rows[threadIdx.x]);
  for (int i = 0; i < 4; ++i) {
    out[threadIdx.x * 8 + i] = plain[i];
    out[threadIdx.x * 8 + 4 + i] = transposed[i];
  }
}

__global__ void movmatrix_kernel(const uint32_t* in, uint32_t* out) {
  out[threadIdx.x] = ptx::movmatrix_trans(in[threadIdx.x]);
}

__global__ void shuffle_kernel(const int* operand, int width, int* out) {
  const unsigned all = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x);
  int* mine = out + 4 * lane;
  mine[0] = __shfl_sync(all, lane, operand[lane], width);
  mine[1] = __shfl_up_sync(all, lane, static_cast<unsigned>(operand[lane]), width);
  mine[2] = __shfl_down_sync(all, lane, static_cast<unsigned>(operand[lane]), width);
  mine[3] = __shfl_xor_sync(all, lane, operand[lane], width);
}

__global__ void vote_kernel(const int* votes, unsigned* out) {
  const unsigned all = 0xffffffffu;
  const int vote = votes[threadIdx.x];
  unsigned* mine = out + 4 * threadIdx.x;
  mine[0] = __ballot_sync(all, vote);
  mine[1] = static_cast<unsigned>(__any_sync(all, vote));
  mine[2] = static_cast<unsigned>(__all_sync(all, vote));
  mine[3] = static_cast<unsigned>(__syncthreads_or(vote));
  mine[3] |= static_cast<unsigned>(__syncthreads_or(0)) << 16;  // nothing is left of the votes before
}

}  // namespace

void mma(Address words, Address out, int threads) {
  launch(mma_kernel, 1, threads, 0, at<const uint32_t>(words), at<float>(out));
}
void ldmatrix(Address matrices, Address rows, Address out) {
  launch(ldmatrix_kernel, 1, 32, 512, at<const uint4>(matrices), at<const int>(rows), at<uint32_t>(out));
}
void movmatrix(Address in, Address out) {
  launch(movmatrix_kernel, 1, 32, 0, at<const uint32_t>(in), at<uint32_t>(out));
}
void shuffles(Address operand, int width, Address out) {
  launch(shuffle_kernel, 1, 32, 0, at<const int>(operand), width, at<int>(out));
}
void votes(Address in, Address out, int threads) {
  launch(vote_kernel, 1, threads, 0, at<const int>(in), at<unsigned>(out));
}
