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

SOFTDIFF_HD Words philox(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxMul0) * c.w[0];
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxMul1) * c.w[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return c;
}

}  // namespace softdiff
