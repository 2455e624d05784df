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
