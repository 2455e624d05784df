// SPDX-License-Identifier: Apache-2.0
// Each collective once: what went in and what came out, for every lane.
#include <cuda_runtime.h>

#include "kernels.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;

__global__ void shuffle_kernel(int lanes, int* out) {
  out[threadIdx.x] = __shfl_xor_sync(kAll, static_cast<int>(threadIdx.x), lanes);
}

__global__ void vote_kernel(const int* votes, int* out) { out[threadIdx.x] = __any_sync(kAll, votes[threadIdx.x]); }

}  // namespace

void shuffle(int lanes, Address out) { launch(shuffle_kernel, 1, 64, 0, lanes, at<int>(out)); }
void votes(Address in, Address out, int threads) {
  launch(vote_kernel, 1, static_cast<unsigned>(threads), 0, at<const int>(in), at<int>(out));
}
