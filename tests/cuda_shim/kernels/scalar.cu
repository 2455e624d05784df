// SPDX-License-Identifier: Apache-2.0
// Conversions, bit functions, indices, launches.
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <shim_ptx.h>

#include "kernels.h"

namespace {

__global__ void to_half_kernel(const float* in, int n, __half2* out, uint16_t* portable) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    out[i] = __floats2half2_rn(in[i], -in[i]);
    portable[i] = softdiff_shim::half_bits_portable(in[i]);
  }
}

__global__ void from_half_kernel(const __half2* in, int n, float* out, float* portable) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    const float2 pair = __half22float2(in[i]);
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
    portable[2 * i] = softdiff_shim::half_value_portable(in[i].x.bits);
    portable[2 * i + 1] = softdiff_shim::half_value_portable(in[i].y.bits);
  }
}

__global__ void bits_kernel(const unsigned* in, unsigned* out) {
  const unsigned a = in[0], b = in[1];
  out[0] = __umulhi(a, b);
  out[1] = __float_as_uint(__uint_as_float(a & 0x7f000000u));
}

__global__ void functions_kernel(const float* in, int n, float* out) {
  using namespace softdiff;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    out[i] = cuda::sqrt_approx(in[i]);
    out[n + i] = cuda::lg2_approx(in[i]);
    out[2 * n + i] = cuda::exp2f(-in[i]);
    out[3 * n + i] = cuda::expm1f(-in[i]);
  }
}

// One mark for each thread of each block, at its index counted x first, block after block.
__global__ void visit_kernel(int* marks) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  __syncthreads();
  marks[block * blockDim.x * blockDim.y * blockDim.z + thread] += static_cast<int>(1 + threadIdx.z + 10 * blockIdx.y);
}

// `count` collectives in a row for each warp of 256 threads.
__global__ void many_kernel(int count, float* out) {
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) sum += __shfl_xor_sync(0xffffffffu, 1.0f, 16);
  out[threadIdx.x] = sum;
}

__global__ void empty_kernel() {}
__global__ void plain_kernel() {}

}  // namespace

void to_half(Address in, int n, Address out, Address portable) {
  launch(to_half_kernel, 1, 32, 0, at<const float>(in), n, at<__half2>(out), at<uint16_t>(portable));
}
void from_half(Address in, int n, Address out, Address portable) {
  launch(from_half_kernel, 1, 32, 0, at<const __half2>(in), n, at<float>(out), at<float>(portable));
}
void bits(Address in, Address out) { launch(bits_kernel, 1, 32, 0, at<const unsigned>(in), at<unsigned>(out)); }
void functions(Address in, int n, Address out) {
  launch(functions_kernel, 1, 32, 0, at<const float>(in), n, at<float>(out));
}
void visit(Address marks) { launch(visit_kernel, dim3(2, 3, 5), dim3(8, 4, 2), 0, at<int>(marks)); }
void many(int count, Address out) { launch(many_kernel, 1, 256, 0, count, at<float>(out)); }

int empty(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, size_t shared_bytes,
          int allowed) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(gx, gy, gz);
  config.blockDim = dim3(bx, by, bz);
  config.dynamicSmemBytes = shared_bytes;
  cudaError_t error = cudaFuncSetAttribute(empty_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, empty_kernel);
  return cudaGetLastError() == error && cudaGetLastError() == cudaSuccess ? error : -1;
}

int never_allowed(int shared_bytes) {
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  cudaLaunchKernelEx(&config, plain_kernel);
  return cudaGetLastError();
}

int attribute(int which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(which), 0));
  return value;
}
