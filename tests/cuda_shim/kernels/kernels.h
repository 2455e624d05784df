// SPDX-License-Identifier: Apache-2.0
// The test kernels' launchers, called from bindings.cpp with tensors' addresses.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorName(error));
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, int shared_bytes, A&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...));
}

// warp.cu
void mma(Address words, Address out, int threads);
void ldmatrix(Address matrices, Address rows, Address out);
void movmatrix(Address in, Address out);
void shuffles(Address operand, int width, Address out);
void votes(Address in, Address out, int threads);

// errors.cu
void mistake(const std::string& name, Address out);

// races.cu
void neighbour(int step, bool synchronised, Address out, int threads);
void rounds(int count, bool synchronised, Address out, int threads);
void warp_rows(bool synchronised, Address out);
void copies(Address in, int stages, bool early, bool barrier, Address out, int threads);
void offsets(Address in, int read, Address out, int write, int shared_at);

// scalar.cu
void to_half(Address in, int n, Address out, Address portable, Address brain);
void from_half(Address in, int n, Address out, Address portable, Address brain_in, Address brain);
void bits(Address in, Address out);
void functions(Address in, int n, Address out);
void visit(Address marks);
void atomics(Address f, Address d, Address u, Address i);
void many(int count, Address out);
int empty(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, size_t shared_bytes,
          int allowed);
int never_allowed(int shared_bytes);
int attribute(int which);
int occupancy(int threads, size_t shared_bytes);

// cluster.cu
void exchange(bool begun, bool written, bool read, int past, Address out, unsigned blocks, unsigned threads);
void cluster_halves(Address out);
void cluster_mistake(const std::string& name, Address out);
int empty_clusters(unsigned blocks, unsigned cluster, unsigned threads);
