// SPDX-License-Identifier: Apache-2.0
// What every launch goes through: the right device, its stream, shared memory, and an error that says which kernel
// and which shape. Nothing here waits for the device, allocates, or copies: a launch can be captured.
#pragma once

#include "cuda_ops.h"

#include <cuda_runtime.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace softdiff::cuda {

inline std::string described(const char* what, const Shape& s, cudaError_t error) {
  return std::string("softdiff CUDA kernel ") + what + " for images [" + std::to_string(s.b) + ", " +
         std::to_string(s.c) + ", " + std::to_string(s.h) + ", " + std::to_string(s.w) + "]: " + cudaGetErrorName(error) +
         " (" + cudaGetErrorString(error) + ")";
}

inline void check(const char* what, const Shape& shape, cudaError_t error) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // so that the error is reported once
  throw std::runtime_error(described(what, shape, error));
}

// The caller's device comes back, whatever happens. (From Python it is the right one already: torch changes it without
// making a context on the one that it comes back to.)
class OnDevice {
 public:
  OnDevice(const char* what, const Shape& shape, int device) {
    check(what, shape, cudaGetDevice(&before_));
    if (device != before_) check(what, shape, cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~OnDevice() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Beyond 48 KiB a kernel has to be allowed its shared memory, once on each device: all that the device has, so that
// no thread lowers what another has just set.
template <auto kKernel>
cudaError_t allow_shared(int device, size_t bytes) {
  constexpr int kDevices = 64;
  static std::atomic<bool> allowed[kDevices];
  if (bytes <= 48 * 1024) return cudaSuccess;
  if (device < kDevices && allowed[device].load(std::memory_order_relaxed)) return cudaSuccess;
  int most = 0;
  cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess && device < kDevices) allowed[device].store(true, std::memory_order_relaxed);
  return error;
}

template <auto kKernel, class... Args>
void launch(const char* what, const Shape& shape, const Place& place, int64_t blocks, int threads, size_t shared,
            const Args&... args) {
  if (blocks == 0) return;
  if (blocks > 0x7FFFFFFF) throw std::runtime_error(described(what, shape, cudaErrorInvalidConfiguration));
  check(what, shape, allow_shared<kKernel>(place.device, shared));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(place.stream);
  check(what, shape, cudaLaunchKernelEx(&config, kKernel, args...));
}

}  // namespace softdiff::cuda
