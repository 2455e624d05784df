// SPDX-License-Identifier: Apache-2.0
// Powers of two that bring operands into float16's range; the largest of a warp's or a block's numbers, from which
// they follow; and the sums of energies.
#pragma once

#include "ptx.h"

namespace softdiff::cuda {

// The power of two that brings `magnitude` into [16, 32), as far as it and its inverse are normal numbers.
SOFTDIFF_DEVICE float power(float magnitude) {
  const int exponent = static_cast<int>(__float_as_uint(magnitude) >> 23 & 255u);
  return __uint_as_float(static_cast<uint32_t>(min(max(258 - exponent, 1), 253)) << 23);
}

SOFTDIFF_DEVICE float inverse_power(float p) { return __uint_as_float((254u << 23) - __float_as_uint(p)); }

SOFTDIFF_DEVICE float warp_largest(float x) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, i));
  return x;
}

SOFTDIFF_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(0xFFFFFFFFu, x, i);
  return x;
}

// The largest, or the sum, of the warps' numbers, which lie in shared memory.
SOFTDIFF_DEVICE float block_largest(const float* of_warps) {
  float most = 0.0f;
  for (int i = 0; i < static_cast<int>(blockDim.x) / 32; ++i) most = fmaxf(most, of_warps[i]);
  return most;
}

SOFTDIFF_DEVICE double block_sum(const float* of_warps) {
  double sum = 0.0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / 32; ++i) sum += of_warps[i];
  return sum;
}

}  // namespace softdiff::cuda
