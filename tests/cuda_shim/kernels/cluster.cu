// SPDX-License-Identifier: Apache-2.0
// Two blocks of a cluster that read each other's shared memory, with the barriers that this needs or without.
#include <cuda_runtime.h>
#include <shim_ptx.h>

#include "kernels.h"

namespace {

namespace ptx = softdiff::cuda;

void both() {
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

// out[block, t] = what thread n - 1 - t of the other block wrote. `begun`: before the other's memory is looked for;
// `written`: before it is read; `read`: before a block ends. `past` threads further is outside.
__global__ void exchange_kernel(bool begun, bool written, bool read, int past, int* out) {
  ptx::Arena arena;
  const int n = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  int* mine = arena.take<int>(n);
  if (begun) both();
  const int* theirs = ptx::in_block(mine, block % 2 ^ 1);
  mine[t] = 1000 * block + t;
  if (written) both();
  const int got = theirs[n - 1 - t + past];
  if (read) both();
  out[block * n + t] = got;
}

// Half a barrier, then work that nobody else waits for: out[block, t] = 1 where all threads went on.
__global__ void halves_kernel(int* out) {
  for (int i = 0; i < 3; ++i) {
    ptx::cluster_arrive();
    if (blockIdx.x % 2 == 0) __syncthreads();
    ptx::cluster_wait();
  }
  ptx::cluster_arrive();
  if (blockIdx.x % 2 == 0 && threadIdx.x < 32) return;  // those who have ended count as there
  ptx::cluster_wait();
  out[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

__global__ void waits_for_all() { both(); }

__global__ void arrives_twice(int*) {
  ptx::cluster_arrive();
  ptx::cluster_arrive();
}

__global__ void waits_alone(int*) { ptx::cluster_wait(); }

__global__ void third_block(int*) {
  ptx::Arena arena;
  int* mine = arena.take<int>(32);
  ptx::in_block(mine, 2);
}

__global__ void not_shared(int* out) {
  ptx::Arena arena;
  arena.take<int>(32);
  ptx::in_block(out, 1);
}

__global__ void one_block_stays_away(int*) {
  if (blockIdx.x % 2 == 0) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
    if (threadIdx.x == 0) return;
    __syncthreads();
  }
}

template <class... P, class... A>
cudaError_t launch_clusters(void (*kernel)(P...), unsigned blocks, unsigned cluster, unsigned threads, A&&... args) {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = 4096;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
}

}  // namespace

void exchange(bool begun, bool written, bool read, int past, Address out, unsigned blocks, unsigned threads) {
  check(launch_clusters(exchange_kernel, blocks, 2, threads, begun, written, read, past, at<int>(out)));
}

void cluster_halves(Address out) { check(launch_clusters(halves_kernel, 4, 2, 64, at<int>(out))); }

void cluster_mistake(const std::string& name, Address out) {
  const std::pair<const char*, void (*)(int*)> cases[] = {{"arrives_twice", arrives_twice},
                                                          {"waits_alone", waits_alone},
                                                          {"third_block", third_block},
                                                          {"not_shared", not_shared},
                                                          {"one_block_stays_away", one_block_stays_away}};
  for (const auto& [known, kernel] : cases)
    if (name == known) return check(launch_clusters(kernel, 2, 2, 64, at<int>(out)));
  throw std::out_of_range(name);
}

int empty_clusters(unsigned blocks, unsigned cluster, unsigned threads) {
  const cudaError_t error = launch_clusters(waits_for_all, blocks, cluster, threads);
  return cudaGetLastError() == error ? error : -1;
}
