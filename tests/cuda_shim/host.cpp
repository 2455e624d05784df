// SPDX-License-Identifier: Apache-2.0
// The runtime's calls, and the hooks through which tests look at launches and make them fail.
#include <algorithm>
#include <climits>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "engine.h"
#include "include/cuda_runtime.h"
#include "kernel_name.h"

#define SOFTDIFF_SHIM_HOOK extern "C" __attribute__((visibility("default")))

namespace softdiff_shim {
namespace {

constexpr int kDefaultShared = 48 << 10;

struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
};

std::recursive_mutex mutex;  // one launch at a time, whichever host thread it comes from
thread_local cudaError_t last_error = cudaSuccess;
cudaError_t next_launch = cudaSuccess;
int shared_optin = 227 << 10;  // as compute capability 9.0 has
std::unordered_map<const void*, int> shared_allowed;
std::vector<Launch> launches;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

bool sizes_allowed(dim3 grid, dim3 block) {
  const auto within = [](dim3 v, uint64_t x, uint64_t y, uint64_t z) {
    return v.x > 0 && v.y > 0 && v.z > 0 && v.x <= x && v.y <= y && v.z <= z;
  };
  return within(grid, INT_MAX, 65535, 65535) && within(block, 1024, 1024, 64) &&
         static_cast<uint64_t>(block.x) * block.y * block.z <= 1024;
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t* config, const void* kernel, const std::function<void()>& body) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (next_launch != cudaSuccess) return result(std::exchange(next_launch, cudaSuccess));
  if (kernel == nullptr) return result(cudaErrorInvalidDeviceFunction);
  if (!sizes_allowed(config->gridDim, config->blockDim)) return result(cudaErrorInvalidConfiguration);
  const auto allowed = shared_allowed.find(kernel);
  const int limit = allowed == shared_allowed.end() ? kDefaultShared : allowed->second;
  if (config->dynamicSmemBytes > static_cast<size_t>(std::min(limit, shared_optin))) {
    return result(cudaErrorInvalidValue);
  }
  launches.push_back({kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes});
  const Schedule schedule = Schedule::from_environment();
  read_side();
  indices.grid_dim = config->gridDim;
  indices.block_dim = config->blockDim;
  engine.run(kernel, body, config->dynamicSmemBytes, schedule);
  return cudaSuccess;
}

cudaError_t set_max_shared(const void* kernel, cudaFuncAttribute attribute, int bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (kernel == nullptr) return result(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || bytes < 0 || bytes > shared_optin) {
    return result(cudaErrorInvalidValue);
  }
  shared_allowed[kernel] = bytes;
  return cudaSuccess;
}

}  // namespace softdiff_shim

using namespace softdiff_shim;

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 4; return cudaSuccess;
    case cudaDevAttrL2CacheSize: *value = 1 << 20; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_optin; return cudaSuccess;
  }
  return result(cudaErrorInvalidValue);
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

namespace {

struct Named {
  cudaError_t error;
  const char *name, *sentence;
};

constexpr Named kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  for (const Named& e : kErrors)
    if (e.error == error) return e.name;
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  for (const Named& e : kErrors)
    if (e.error == error) return e.sentence;
  return "unrecognized error code";
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

SOFTDIFF_SHIM_HOOK void softdiff_shim_fail_next(int code) { next_launch = static_cast<cudaError_t>(code); }
SOFTDIFF_SHIM_HOOK void softdiff_shim_set_shared_optin(int bytes) { shared_optin = bytes; }
SOFTDIFF_SHIM_HOOK int softdiff_shim_launches() { return static_cast<int>(launches.size()); }
SOFTDIFF_SHIM_HOOK void softdiff_shim_forget_launches() { launches.clear(); }
// sizes: grid x, y, z, block x, y, z, dynamic shared memory; the name is cut to fit.
SOFTDIFF_SHIM_HOOK void softdiff_shim_launch(int index, long long* sizes, char* name, int name_bytes) {
  const Launch& l = launches.at(static_cast<size_t>(index));
  const long long values[] = {l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y, l.block.z,
                              static_cast<long long>(l.shared_bytes)};
  std::memcpy(sizes, values, sizeof values);
  std::strncpy(name, kernel_name(l.kernel).c_str(), static_cast<size_t>(name_bytes) - 1);
  name[name_bytes - 1] = '\0';
}
