// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al. 2011), for host and device alike: the constants and one counter's words.
// Counter (block, draw, stream_low, stream_high), key = the 64-bit seed; see softdiff_kernels/noise.py.
#pragma once

#include "host_device.h"

#include <cstdint>

namespace softdiff {

constexpr uint32_t kPhiloxMul0 = 0xD2511F53u, kPhiloxMul1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct Words {
  uint32_t w[4];
};

// a b, 64 bits of it. (Of a 64-bit product nvcc makes a multiplication of 64 bits and an addition.)
SOFTDIFF_HD void wide_product(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
#ifdef __CUDA_ARCH__
  asm("{ .reg .u64 p; mul.wide.u32 p, %2, %3; mov.b64 {%1, %0}, p; }" : "=r"(high), "=r"(low) : "r"(a), "r"(b));
#else
  const uint64_t p = static_cast<uint64_t>(a) * b;
  high = static_cast<uint32_t>(p >> 32), low = static_cast<uint32_t>(p);
#endif
}

SOFTDIFF_HD Words philox(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    uint32_t high0, low0, high1, low1;
    wide_product(c.w[0], kPhiloxMul0, high0, low0);
    wide_product(c.w[2], kPhiloxMul1, high1, low1);
    c = {{high1 ^ c.w[1] ^ k0, low1, high0 ^ c.w[3] ^ k1, low0}};
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return c;
}

}  // namespace softdiff
