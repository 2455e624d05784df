// SPDX-License-Identifier: Apache-2.0
// Box-Muller: two words of the noise stream become two normals, within 2e-6 of the float64 twin.
//
// Where a permutation of lanes looks VL numbers up at once, both functions are cut into VL cells, so that
// short polynomials do and no branch is selected: about 40 instructions a pair, against 60 without tables.
#pragma once

#include "simd.h"

namespace softdiff::SOFTDIFF_ISA {

#if SOFTDIFF_VL >= 8

// By cell of the mantissa: 2^-24 / c and 2 ln(1 / c), c the cell's middle; the last cell has c = 2, so that all
// is exact where u is near 1. By cell of the turn: cosine and sine of its start.
#if SOFTDIFF_VL == 16
alignas(64) constexpr float kInverse[VL] = {
    5.77984451e-08f, 5.44956755e-08f, 5.15499643e-08f, 4.89063758e-08f, 4.65206966e-08f, 4.43569448e-08f,
    4.23855262e-08f, 4.05818845e-08f, 3.89254815e-08f, 3.73989941e-08f, 3.59877106e-08f, 3.46790650e-08f,
    3.34622570e-08f, 3.23279430e-08f, 3.12680086e-08f, 2.98023224e-08f};
alignas(64) constexpr float kLog[VL] = {
    -0.061543256f, -0.179224312f, -0.290363967f, -0.39565146f,  -0.495672405f, -0.590928435f,
    -0.681853116f, -0.768823445f, -0.852168858f, -0.932179391f, -1.009112f,    -1.08319461f,
    -1.15463066f,  -1.22360313f,  -1.29027605f,  -1.38629436f};
alignas(64) constexpr float kCos[VL] = {1.0f,  0.923879533f,  0.707106781f,  0.382683432f,
                                        0.0f,  -0.382683432f, -0.707106781f, -0.923879533f,
                                        -1.0f, -0.923879533f, -0.707106781f, -0.382683432f,
                                        0.0f,  0.382683432f,  0.707106781f,  0.923879533f};
alignas(64) constexpr float kSin[VL] = {0.0f,  0.382683432f,  0.707106781f,  0.923879533f,
                                        1.0f,  0.923879533f,  0.707106781f,  0.382683432f,
                                        0.0f,  -0.382683432f, -0.707106781f, -0.923879533f,
                                        -1.0f, -0.923879533f, -0.707106781f, -0.382683432f};
constexpr int kCellBits = 4;
#else
alignas(64) constexpr float kInverse[VL] = {5.60984894e-08f, 5.01933854e-08f, 4.54130635e-08f, 4.14641015e-08f,
                                            3.81469718e-08f, 3.53212712e-08f, 3.28853211e-08f, 2.98023224e-08f};
alignas(64) constexpr float kLog[VL] = {-0.121249236f, -0.343700498f, -0.543867409f, -0.725810945f,
                                        -0.892574251f, -1.04649627f,  -1.18941426f,  -1.38629436f};
alignas(64) constexpr float kCos[VL] = {1.0f,  0.707106781f,  0.0f, -0.707106781f,
                                        -1.0f, -0.707106781f, 0.0f, 0.707106781f};
alignas(64) constexpr float kSin[VL] = {0.0f, 0.707106781f,  1.0f,  0.707106781f,
                                        0.0f, -0.707106781f, -1.0f, -0.707106781f};
constexpr int kCellBits = 3;
#endif

// -2 ln u for u = (k + 1/2) 2^-24, k = word >> 8. With u = 2^e m and c near m it is -2 log1p(m / c - 1) +
// 2 ln(1 / c) - 2 e ln 2; m / c - 1 comes from k by multiply-adds that lose nothing, which a u in float32, with
// its last bit lost near 1, would: off by up to 2.4e-4 in the normal.
template <int P>
SD_INLINE void minus_two_log(const U (&word)[P], V (&out)[P]) {
  V k[P], scale[P], f[P], base[P];
  I bits[P];
  SD_UNROLL
  for (int i = 0; i < P; ++i) k[i] = to_float(reinterpret_cast<I>(word[i] >> 8));
  // k + 1/2 may be rounded up to a power of two: one less puts that into the last cell of the binade before.
  SD_UNROLL
  for (int i = 0; i < P; ++i) bits[i] = as_int(k[i] + 0.5f) - (((127 + 24) << 23) + 1);
  SD_UNROLL
  for (int i = 0; i < P; ++i) {
    const U cell = reinterpret_cast<U>(bits[i] >> (23 - kCellBits));
    scale[i] = as_float(as_int(lookup(kInverse, cell)) - (bits[i] & static_cast<int32_t>(0xff800000u)));
    base[i] = to_float(bits[i] >> 23) * -1.38629436f + lookup(kLog, cell);
  }
  SD_UNROLL
  for (int i = 0; i < P; ++i) f[i] = 0.5f * scale[i] + (k[i] * scale[i] - 1.0f);
  V p[P];
#if SOFTDIFF_VL == 16
  SD_UNROLL
  for (int i = 0; i < P; ++i) p[i] = -0.66721928f * f[i] + 1.0004046f;
  SD_UNROLL
  for (int i = 0; i < P; ++i) p[i] = p[i] * f[i] + -1.9999999f;
#else
  SD_UNROLL
  for (int i = 0; i < P; ++i) p[i] = 0.50215012f * f[i] + -0.66861522f;
  SD_UNROLL
  for (int i = 0; i < P; ++i) p[i] = p[i] * f[i] + 0.99999672f;
  SD_UNROLL
  for (int i = 0; i < P; ++i) p[i] = p[i] * f[i] + -1.9999981f;
#endif
  SD_UNROLL
  for (int i = 0; i < P; ++i) out[i] = f[i] * p[i] + base[i];
}

// radius * (cos, sin) of the angle int32(q) 2 pi / 2^32.
template <int P>
SD_INLINE void around(const V (&radius)[P], const U (&q)[P], V (&z0)[P], V (&z1)[P]) {
  // What is left of the angle, at most half a cell to either side.
  constexpr float kStep = static_cast<float>(6.283185307179586 / 4294967296.0 / (1 << kCellBits));
  V y[P], y2[P], c[P], s[P], dc[P], ds[P];
  SD_UNROLL
  for (int i = 0; i < P; ++i) y[i] = to_float(reinterpret_cast<I>(q[i] << kCellBits)) * kStep;
  SD_UNROLL
  for (int i = 0; i < P; ++i) y2[i] = y[i] * y[i];
#if SOFTDIFF_VL == 16
  SD_UNROLL
  for (int i = 0; i < P; ++i) dc[i] = 0.04158639f * y2[i] + -0.49999884f, ds[i] = 0.00831996f * y2[i] + -0.16666640f;
  SD_UNROLL
  for (int i = 0; i < P; ++i) dc[i] = dc[i] * y2[i] + 1.0f, ds[i] = ds[i] * y2[i] + 1.0f;
#else
  SD_UNROLL
  for (int i = 0; i < P; ++i) dc[i] = -0.0013812582f * y2[i] + 0.04166593f, ds[i] = 0.00827994f * y2[i] + -0.16666256f;
  SD_UNROLL
  for (int i = 0; i < P; ++i) dc[i] = dc[i] * y2[i] + -0.49999997f, ds[i] = ds[i] * y2[i] + 0.99999994f;
  SD_UNROLL
  for (int i = 0; i < P; ++i) dc[i] = dc[i] * y2[i] + 1.0f;
#endif
  SD_UNROLL
  for (int i = 0; i < P; ++i) {
    const U cell = (q[i] + (1u << (31 - kCellBits))) >> (32 - kCellBits);
    c[i] = lookup(kCos, cell), s[i] = lookup(kSin, cell);
    dc[i] = radius[i] * dc[i], ds[i] = radius[i] * y[i] * ds[i];
  }
  SD_UNROLL
  for (int i = 0; i < P; ++i) {
    z0[i] = c[i] * dc[i] - s[i] * ds[i];
    z1[i] = s[i] * dc[i] + c[i] * ds[i];
  }
}

#else

// -2 ln u for u = (k + 1/2) 2^-24. Above sqrt(1/2) it is log1p of the complement, which float32 holds
// exactly where u itself would have lost its last bit: a naive ln is off by up to 2.4e-4 in the normal.
SD_INLINE V minus_two_log(U word) {
  const U k = word >> 8;
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
  return -2.0f * (e * 0.693359375f + (f + (tail - 0.5f * square)));
}

// radius * (cos, sin) of the angle int32(q) 2 pi / 2^32, reduced to a quarter turn in integers.
SD_INLINE void around(V radius, U q, V& z0, V& z1) {
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

template <int P>
SD_INLINE void minus_two_log(const U (&word)[P], V (&out)[P]) {
  for (int i = 0; i < P; ++i) out[i] = minus_two_log(word[i]);
}
template <int P>
SD_INLINE void around(const V (&radius)[P], const U (&q)[P], V (&z0)[P], V (&z1)[P]) {
  for (int i = 0; i < P; ++i) around(radius[i], q[i], z0[i], z1[i]);
}

#endif

// P pairs of words, step by step for all of them: a pair alone is a chain of some twenty operations, each of which waits
// for the one before.
template <int P>
SD_INLINE void box_muller(const U (&r)[P], const U (&q)[P], V (&z0)[P], V (&z1)[P]) {
  V radius[P];
  minus_two_log(r, radius);
  SD_UNROLL
  for (int i = 0; i < P; ++i) radius[i] = sqrt(radius[i]);
  around(radius, q, z0, z1);
}

}  // namespace softdiff::SOFTDIFF_ISA
