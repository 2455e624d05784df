// SPDX-License-Identifier: Apache-2.0
// What the module knows of itself and of the machine.
#include "device.h"

#include <cuda_runtime.h>

#include <stdexcept>

namespace softdiff::cuda {

std::vector<int> architectures() {
  return {SOFTDIFF_CUDA_ARCHS};
}

int ptx_architecture() {
  return SOFTDIFF_CUDA_PTX;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;  // a number in the library: no driver asked
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

std::vector<std::pair<int, int>> devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  std::vector<std::pair<int, int>> capabilities(count);
  for (int i = 0; i < count; ++i) {
    cudaDeviceGetAttribute(&capabilities[i].first, cudaDevAttrComputeCapabilityMajor, i);
    cudaDeviceGetAttribute(&capabilities[i].second, cudaDevAttrComputeCapabilityMinor, i);
  }
  return capabilities;
}

}  // namespace softdiff::cuda
