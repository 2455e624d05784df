// SPDX-License-Identifier: Apache-2.0
// The vector types of one instruction set, chosen by SOFTDIFF_ISA_*: one source serves AVX-512, AVX2
// and anything else. Everything lies in a namespace of its own per instruction set and is inlined, so
// that the linker can never put one set's code where another runs; for the same reason no header of
// the C++ library is used by code that includes this.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(SOFTDIFF_ISA_AVX512)
#define SOFTDIFF_ISA avx512
#define SOFTDIFF_VL 16
#elif defined(SOFTDIFF_ISA_AVX2)
#define SOFTDIFF_ISA avx2
#define SOFTDIFF_VL 8
#else
#define SOFTDIFF_ISA portable
#define SOFTDIFF_VL 4
#endif
#if defined(SOFTDIFF_ISA_AVX512) || defined(SOFTDIFF_ISA_AVX2)
#if !defined(__clang__)
// GCC 12 takes the deliberately undefined operands inside its own AVX-512 header for mistakes.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

#define SD_INLINE inline __attribute__((always_inline))
#define SD_LAMBDA __attribute__((always_inline))
#define SD_UNROLL _Pragma("GCC unroll 64")

namespace softdiff::SOFTDIFF_ISA {

constexpr int VL = SOFTDIFF_VL;
typedef float V __attribute__((vector_size(4 * VL)));
typedef int32_t I __attribute__((vector_size(4 * VL)));
typedef uint32_t U __attribute__((vector_size(4 * VL)));
typedef uint64_t Q __attribute__((vector_size(4 * VL)));  // half as many lanes
typedef uint8_t B __attribute__((vector_size(VL)));
typedef uint16_t H __attribute__((vector_size(2 * VL)));

template <class T>
SD_INLINE T load_as(const void* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof(T));
  return v;
}
template <class T>
SD_INLINE void store_as(void* p, T v) {
  __builtin_memcpy(p, &v, sizeof(T));
}
SD_INLINE V load(const float* p) { return load_as<V>(p); }
SD_INLINE void store(float* p, V v) { store_as(p, v); }

// The first n of VL numbers, 0 < n <= VL: the rest of what is loaded is zero, the rest of memory is not touched.
#if defined(SOFTDIFF_ISA_AVX512)
SD_INLINE V load_part(const float* p, int64_t n) {
  return reinterpret_cast<V>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
SD_INLINE void store_part(float* p, int64_t n, V v) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(v));
}
#elif defined(SOFTDIFF_ISA_AVX2)
SD_INLINE __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SD_INLINE V load_part(const float* p, int64_t n) { return reinterpret_cast<V>(_mm256_maskload_ps(p, first_lanes(n))); }
SD_INLINE void store_part(float* p, int64_t n, V v) {
  _mm256_maskstore_ps(p, first_lanes(n), reinterpret_cast<__m256>(v));
}
#else
SD_INLINE V load_part(const float* p, int64_t n) {
  V v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
SD_INLINE void store_part(float* p, int64_t n, V v) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}
#endif

SD_INLINE V splat(float x) { return x - V{}; }
SD_INLINE I as_int(V v) { return reinterpret_cast<I>(v); }
SD_INLINE V as_float(I v) { return reinterpret_cast<V>(v); }
SD_INLINE V to_float(I v) { return __builtin_convertvector(v, V); }
SD_INLINE V select(I mask, V yes, V no) { return mask ? yes : no; }

SD_INLINE V sqrt(V v) {
#if defined(SOFTDIFF_ISA_AVX512)
  return reinterpret_cast<V>(_mm512_sqrt_ps(reinterpret_cast<__m512>(v)));
#elif defined(SOFTDIFF_ISA_AVX2)
  return reinterpret_cast<V>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
#else
  for (int i = 0; i < VL; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// Products of the low halves of 64-bit lanes.
SD_INLINE Q mul_low(Q a, uint32_t b) {
#if defined(SOFTDIFF_ISA_AVX512)
  return reinterpret_cast<Q>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif defined(SOFTDIFF_ISA_AVX2)
  return reinterpret_cast<Q>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#else
  return (a & 0xFFFFFFFFu) * static_cast<uint64_t>(b);
#endif
}

SD_INLINE Q xor3(Q a, Q b, Q c) {
#if defined(SOFTDIFF_ISA_AVX512)
  return reinterpret_cast<Q>(_mm512_ternarylogic_epi64(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b),
                                                       reinterpret_cast<__m512i>(c), 0x96));
#else
  return a ^ b ^ c;
#endif
}

// Of 64-bit lanes a and b: the low halves, or the high halves, as neighbours.
SD_INLINE Q pack_low(Q a, Q b) {
#if defined(SOFTDIFF_ISA_AVX512)
  return reinterpret_cast<Q>(_mm512_mask_shuffle_epi32(reinterpret_cast<__m512i>(a), 0xAAAA,
                                                       reinterpret_cast<__m512i>(b), static_cast<_MM_PERM_ENUM>(0xA0)));
#elif defined(SOFTDIFF_ISA_AVX2)
  return reinterpret_cast<Q>(
      _mm256_blend_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b << 32), 0xAA));
#else
  return (a & 0xFFFFFFFFu) | (b << 32);
#endif
}
SD_INLINE Q pack_high(Q a, Q b) {
#if defined(SOFTDIFF_ISA_AVX512)
  return reinterpret_cast<Q>(_mm512_mask_shuffle_epi32(reinterpret_cast<__m512i>(b), 0x5555,
                                                       reinterpret_cast<__m512i>(a), static_cast<_MM_PERM_ENUM>(0xF5)));
#elif defined(SOFTDIFF_ISA_AVX2)
  return reinterpret_cast<Q>(
      _mm256_blend_epi32(reinterpret_cast<__m256i>(a >> 32), reinterpret_cast<__m256i>(b), 0xAA));
#else
  return (a >> 32) | (b & 0xFFFFFFFF00000000u);
#endif
}

#if SOFTDIFF_VL >= 8
// table[index % VL] in each lane.
SD_INLINE V lookup(const float* table, U index) {
#if defined(SOFTDIFF_ISA_AVX512)
  return reinterpret_cast<V>(_mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), _mm512_loadu_ps(table)));
#else
  return reinterpret_cast<V>(_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), reinterpret_cast<__m256i>(index)));
#endif
}
#endif

// Rows of a VL x VL tile become its columns.
SD_INLINE void transpose(V (&r)[VL]) {
#if defined(SOFTDIFF_ISA_AVX512)
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = reinterpret_cast<__m512>(r[i]);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d lo = _mm512_castps_pd(b[i + j]), hi = _mm512_castps_pd(b[i + 2 + j]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
    }
  }
  for (int j = 0; j < 4; ++j) {
    b[j] = _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88);
    b[j + 4] = _mm512_shuffle_f32x4(a[j], a[j + 4], 0xDD);
    b[j + 8] = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0x88);
    b[j + 12] = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0xDD);
  }
  for (int j = 0; j < 4; ++j) {
    r[j] = reinterpret_cast<V>(_mm512_shuffle_f32x4(b[j], b[j + 8], 0x88));
    r[j + 8] = reinterpret_cast<V>(_mm512_shuffle_f32x4(b[j], b[j + 8], 0xDD));
    r[j + 4] = reinterpret_cast<V>(_mm512_shuffle_f32x4(b[j + 4], b[j + 12], 0x88));
    r[j + 12] = reinterpret_cast<V>(_mm512_shuffle_f32x4(b[j + 4], b[j + 12], 0xDD));
  }
#elif defined(SOFTDIFF_ISA_AVX2)
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = reinterpret_cast<__m256>(r[i]);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + 2 + j], 0x44);
      a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + 2 + j], 0xEE);
    }
  }
  for (int j = 0; j < 4; ++j) {
    r[j] = reinterpret_cast<V>(_mm256_permute2f128_ps(a[j], a[j + 4], 0x20));
    r[j + 4] = reinterpret_cast<V>(_mm256_permute2f128_ps(a[j], a[j + 4], 0x31));
  }
#else
  for (int i = 0; i < VL; ++i) {
    for (int j = i + 1; j < VL; ++j) {
      const float x = r[i][j];
      r[i][j] = r[j][i];
      r[j][i] = x;
    }
  }
#endif
}

// exp(-x) for x >= 0, and 1 - exp(-x) with all its digits; gains beyond exp(-40) are zero, which keeps
// products of two of them clear of denormal numbers.
SD_INLINE void decay(V x, V& gain, V& lost) {
  const I far = x > 40.0f;
  x = select(far, splat(40.0f), x);
  const V n = to_float(__builtin_convertvector(x * 1.44269504f + 0.5f, I));
  // r = n ln 2 - x in [-ln 2 / 2, ln 2 / 2], ln 2 in two parts.
  const V r = (n * 0.693359375f - x) + n * -2.12194440e-4f;
  V p = 0.0013950476f * r + 0.0083688824f;
  p = p * r + 0.041666206f;
  p = p * r + 0.16666518f;
  p = p * r + 0.5f;
  const V minus = r + r * r * p;
  const V power = as_float((127 - __builtin_convertvector(n, I)) << 23);
  gain = select(far, V{}, (1.0f + minus) * power);
  lost = select(n == 0.0f, -minus, 1.0f - gain);
}

}  // namespace softdiff::SOFTDIFF_ISA
