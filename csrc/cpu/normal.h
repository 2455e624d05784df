// SPDX-License-Identifier: Apache-2.0
// The noise stream, VL counters at a time. Twin of softdiff_kernels/noise.py, equal to 2e-6.
#pragma once

#include "../args.h"
#include "../philox.h"
#include "simd.h"

namespace softdiff::SOFTDIFF_ISA {

// ln u for u = (k + 1/2) 2^-24. Above sqrt(1/2) it is log1p of the complement, which float32 holds
// exactly where u itself would have lost its last bit: a naive ln is off by up to 2.4e-4 in the normal.
SD_INLINE V log_uniform(U k) {
  const V scaled = to_float(reinterpret_cast<I>(k)) + 0.5f;
  const I bits = as_int(scaled) - 0x3f3504f3;
  const I exponent = (bits >> 23) - 24;
  const V mantissa = as_float((bits & 0x007fffff) + 0x3f3504f3);
  const V complement = (to_float(reinterpret_cast<I>(0x00ffffffu - k)) + 0.5f) * -5.9604645e-8f;
  const V f = select(exponent == 0, complement, mantissa - 1.0f);
  V p = -0.07634427f * f + 0.1276155f;
  p = p * f + -0.13160196f;
  p = p * f + 0.14201763f;
  p = p * f + -0.16623357f;
  p = p * f + 0.20001227f;
  p = p * f + -0.25000823f;
  p = p * f + 0.33333331f;
  const V square = f * f;
  const V e = to_float(exponent);
  const V tail = (square * f) * p + e * -2.12194440e-4f;
  return e * 0.693359375f + (f + (tail - 0.5f * square));
}

// One Box-Muller pair: radius from word r, angle int32(q) 2 pi / 2^32, reduced to a quarter turn in integers.
SD_INLINE void box_muller(U r, U q, V& z0, V& z1) {
  const V radius = sqrt(-2.0f * log_uniform(r >> 8));
  const U quarter = (q + 0x20000000u) >> 30;
  const V y = to_float(reinterpret_cast<I>(q << 2) >> 2) * 1.4629180792671596e-9f;
  const V y2 = y * y;
  V s = -0.00019517298f * y2 + 0.008332178f;
  s = s * y2 + -0.16666655f;
  s = y + y * y2 * s;
  V c = 2.443845e-05f * y2 + -0.0013887368f;
  c = c * y2 + 0.041666646f;
  c = (1.0f - 0.5f * y2) + y2 * y2 * c;
  const I odd = (quarter & 1u) != 0u;
  const U sign_cos = ((quarter + 1u) & 2u) << 30, sign_sin = (quarter & 2u) << 30;
  z0 = radius * as_float(as_int(select(odd, s, c)) ^ reinterpret_cast<I>(sign_cos));
  z1 = radius * as_float(as_int(select(odd, c, s)) ^ reinterpret_cast<I>(sign_sin));
}

// The key's words for every round, in memory, where each is an operand and costs no instruction.
struct RoundKeys {
  uint64_t k[kPhiloxRounds][2];
  SD_INLINE explicit RoundKeys(uint64_t seed) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      k[round][0] = k0, k[round][1] = k1;
      k0 += kPhiloxWeyl0;
      k1 += kPhiloxWeyl1;
    }
  }
};

// The 4 VL normals of blocks first, ..., first + VL - 1, in element order.
SD_INLINE void normals(const ImageKey& key, const RoundKeys& keys, uint64_t first, float* out) {
  // Lane j of the packed words takes block (j % 4) VL / 4 + j / 4, so that the interleave at the end
  // leaves elements in order. 64-bit lanes hold one counter each: even lanes' words in one set, odd in another.
  Q even0, odd0;
  for (int i = 0; i < VL / 2; ++i) {
    const int je = 2 * i, jo = 2 * i + 1;
    even0[i] = static_cast<uint64_t>((je % 4) * (VL / 4) + je / 4);
    odd0[i] = static_cast<uint64_t>((jo % 4) * (VL / 4) + jo / 4);
  }
  Q a[4] = {even0 + first, Q{} + key.draw, Q{} + (key.stream & 0xFFFFFFFFu), Q{} + (key.stream >> 32)};
  Q b[4] = {odd0 + first, a[1], a[2], a[3]};
  for (int round = 0; round < kPhiloxRounds; ++round) {
    // Only the low half of a lane is ever read, so that what gathers in the high half does no harm.
    const Q q0 = Q{} + keys.k[round][0], q1 = Q{} + keys.k[round][1];
    const Q a0 = mul_low(a[0], kPhiloxMul0), a1 = mul_low(a[2], kPhiloxMul1);
    const Q b0 = mul_low(b[0], kPhiloxMul0), b1 = mul_low(b[2], kPhiloxMul1);
    a[0] = xor3(a1 >> 32, a[1], q0), a[1] = a1, a[2] = xor3(a0 >> 32, a[3], q1), a[3] = a0;
    b[0] = xor3(b1 >> 32, b[1], q0), b[1] = b1, b[2] = xor3(b0 >> 32, b[3], q1), b[3] = b0;
  }
  U w[4];
  for (int j = 0; j < 4; ++j) w[j] = reinterpret_cast<U>((a[j] & 0xFFFFFFFFu) | (b[j] << 32));
  V z[4];
  box_muller(w[0], w[1], z[0], z[1]);
  box_muller(w[2], w[3], z[2], z[3]);
#if defined(SOFTDIFF_ISA_AVX512)
  __m512 f[4];
  for (int j = 0; j < 4; ++j) f[j] = reinterpret_cast<__m512>(z[j]);
  const __m512d t0 = _mm512_castps_pd(_mm512_unpacklo_ps(f[0], f[1])), t1 = _mm512_castps_pd(_mm512_unpackhi_ps(f[0], f[1]));
  const __m512d t2 = _mm512_castps_pd(_mm512_unpacklo_ps(f[2], f[3])), t3 = _mm512_castps_pd(_mm512_unpackhi_ps(f[2], f[3]));
  _mm512_storeu_ps(out, _mm512_castpd_ps(_mm512_unpacklo_pd(t0, t2)));
  _mm512_storeu_ps(out + 16, _mm512_castpd_ps(_mm512_unpackhi_pd(t0, t2)));
  _mm512_storeu_ps(out + 32, _mm512_castpd_ps(_mm512_unpacklo_pd(t1, t3)));
  _mm512_storeu_ps(out + 48, _mm512_castpd_ps(_mm512_unpackhi_pd(t1, t3)));
#elif defined(SOFTDIFF_ISA_AVX2)
  __m256 f[4];
  for (int j = 0; j < 4; ++j) f[j] = reinterpret_cast<__m256>(z[j]);
  const __m256d t0 = _mm256_castps_pd(_mm256_unpacklo_ps(f[0], f[1])), t1 = _mm256_castps_pd(_mm256_unpackhi_ps(f[0], f[1]));
  const __m256d t2 = _mm256_castps_pd(_mm256_unpacklo_ps(f[2], f[3])), t3 = _mm256_castps_pd(_mm256_unpackhi_ps(f[2], f[3]));
  _mm256_storeu_ps(out, _mm256_castpd_ps(_mm256_unpacklo_pd(t0, t2)));
  _mm256_storeu_ps(out + 8, _mm256_castpd_ps(_mm256_unpackhi_pd(t0, t2)));
  _mm256_storeu_ps(out + 16, _mm256_castpd_ps(_mm256_unpacklo_pd(t1, t3)));
  _mm256_storeu_ps(out + 24, _mm256_castpd_ps(_mm256_unpackhi_pd(t1, t3)));
#else
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 4; ++i) out[4 * i + j] = z[j][i];
  }
#endif
}

// Words of blocks first .. first + count - 1 into 4 count floats; writes whole groups of VL blocks,
// so that `out` must have room for the next multiple of 4 VL floats.
inline void fill_normals(const ImageKey& key, uint64_t first, int64_t count, float* out) {
  const RoundKeys keys(key.seed);
  for (int64_t i = 0; i < count; i += VL) normals(key, keys, first + static_cast<uint64_t>(i), out + 4 * i);
}

}  // namespace softdiff::SOFTDIFF_ISA
