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
void shuffle(int lanes, Address out);
void votes(Address in, Address out, int threads);

// errors.cu
void mistake(const std::string& name, Address out);

// races.cu
void neighbour(int step, bool synchronised, Address out, int threads);
void rounds(int count, bool synchronised, Address out, int threads);
void offsets(Address in, int read, Address out, int write, int shared_at);

// scalar.cu
void to_half(Address in, int n, Address out, Address portable);
void from_half(Address in, int n, Address out, Address portable);
void bits(Address in, Address out);
void functions(Address in, int n, Address out);
void visit(Address marks);
void many(int count, Address out);
int empty(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, size_t shared_bytes,
          int allowed);
int never_allowed(int shared_bytes);
int attribute(int which);
