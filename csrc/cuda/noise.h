// SPDX-License-Identifier: Apache-2.0
// The noise stream on the device. Twin of softdiff_kernels/noise.py, equal to 2e-6.
#pragma once

#include "../args.h"
#include "../philox.h"
#include "ptx.h"

namespace softdiff::cuda {

// Two normals from two words. Where u is near 1, float32 holds neither it nor its logarithm: the last 2^-7 take
// a series in 1 - u, formed exactly from the integer. The angle is turned into b = pi/2 - |theta|, whose sine and
// cosine are polynomials on [-pi/2, pi/2] within 2.7e-7; the hardware's are off by 4e-7, which the largest
// radius, 5.9, would make 2.4e-6. The radius is in units of sqrt(2 ln 2), which the coefficients hold.
SOFTDIFF_DEVICE void box_muller(uint32_t r, uint32_t q, float& z0, float& z1) {
  const float whole = static_cast<float>(static_cast<int32_t>(r >> 8));
  const float u = fmaf(whole, 5.9604644775390625e-08f, 2.98023223876953125e-08f);
  // 2 (1 - u) + 2^-24, exact; the 2^-24 comes off in the last constant, 2^-24 times 0.7213.
  const float twice = fmaf(whole, -1.1920928955078125e-07f, 2.0f);
  const float series = fmaf(twice, fmaf(twice, 0.1815185695886612f, 0.721342921257019f), -4.299538e-08f);
  const float radius = sqrt_approx(fabsf(r >= 0xFE000000u ? series : lg2_approx(u)));
  const int32_t angle = static_cast<int32_t>(q);
  const float b = fmaf(fabsf(static_cast<float>(angle)), -1.4629180792671596e-09f, 1.5707963705062866f);
  const float s = b * b;
  float sine = fmaf(s, 3.0500668799504638e-06f, -0.00023313774727284908f);
  sine = fmaf(s, sine, 0.009811239317059517f);
  sine = fmaf(s, sine, -0.1962347775697708f);
  sine = fmaf(s, sine, 1.1774100065231323f) * b;
  float cosine = fmaf(s, -3.067329146233533e-07f, 2.9152861316106282e-05f);
  cosine = fmaf(s, cosine, -0.0016352295642718673f);
  cosine = fmaf(s, cosine, 0.049058716744184494f);
  cosine = fmaf(s, cosine, -0.5887050032615662f);
  cosine = fmaf(s, cosine, 1.1774100065231323f);
  z0 = radius * sine;
  z1 = __uint_as_float(__float_as_uint(radius) | (q & 0x80000000u)) * cosine;
}

// The four normals of one block: of Philox's counter, with the seed's two halves.
SOFTDIFF_DEVICE void normals(const Words& counter, uint32_t k0, uint32_t k1, float (&z)[4]) {
  const Words words = philox(counter, k0, k1);
  box_muller(words.w[0], words.w[1], z[0], z[1]);
  box_muller(words.w[2], words.w[3], z[2], z[3]);
}
SOFTDIFF_DEVICE void normals(const ImageKey& key, uint32_t block, float (&z)[4]) {
  normals({{block, key.draw, static_cast<uint32_t>(key.stream), static_cast<uint32_t>(key.stream >> 32)}},
          static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32), z);
}

// The normals of elements e to e + 3. Two blocks are drawn where they straddle.
SOFTDIFF_DEVICE void normals_at(const ImageKey& key, int64_t e, float (&z)[4]) {
  const int shift = static_cast<int>(e & 3);
  const uint32_t block = static_cast<uint32_t>(e >> 2);
  normals(key, block, z);
  if (shift == 0) return;
  float next[4];
  normals(key, block + 1, next);
  const float all[7] = {z[0], z[1], z[2], z[3], next[0], next[1], next[2]};
#pragma unroll
  for (int i = 0; i < 4; ++i) z[i] = shift == 1 ? all[i + 1] : shift == 2 ? all[i + 2] : all[i + 3];
}

}  // namespace softdiff::cuda
