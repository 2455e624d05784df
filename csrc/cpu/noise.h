// SPDX-License-Identifier: Apache-2.0
// The noise stream, VL counters at a time. Twin of softdiff_kernels/noise.py, equal to 2e-6.
#pragma once

#include "../args.h"
#include "../philox.h"
#include "box_muller.h"

namespace softdiff::SOFTDIFF_ISA {

// What the counters of one image share: the key's words for every round, in memory, where each is an operand
// and costs no instruction, and all of the first rounds that does not depend on the block.
struct Stream {
  uint64_t k[kPhiloxRounds][2];
  uint64_t first, second[2], third;
  SD_INLINE explicit Stream(const ImageKey& key) {
    uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      k[round][0] = k0, k[round][1] = k1;
      k0 += kPhiloxWeyl0;
      k1 += kPhiloxWeyl1;
    }
    // Words (block, draw, low, high): the first round multiplies block and low, the second block's offspring
    // and `word0`.
    const uint64_t low = key.stream & 0xFFFFFFFFu, high = key.stream >> 32;
    const uint64_t product1 = kPhiloxMul1 * low;
    const uint64_t word0 = (product1 >> 32) ^ key.draw ^ k[0][0];
    const uint64_t product0 = kPhiloxMul0 * word0;
    first = high ^ k[0][1];
    second[0] = (product1 & 0xFFFFFFFFu) ^ k[1][0];
    second[1] = (product0 >> 32) ^ k[1][1];
    third = (product0 & 0xFFFFFFFFu) ^ k[2][1];
  }
};

// The blocks of one call, from a first one on. Lane j of the packed words takes block (j % 4) step + j / 4, so
// that the interleave at the end leaves vector v with the elements of blocks v step, v step + 1, ... in order.
// 64-bit lanes hold one counter each: even lanes' words in one set, odd lanes' in another.
struct Blocks {
  Q even, odd;
  SD_INLINE explicit Blocks(uint64_t step) {
    for (int i = 0; i < VL / 2; ++i) {
      even[i] = static_cast<uint64_t>(2 * i % 4) * step + static_cast<uint64_t>(2 * i / 4);
      odd[i] = static_cast<uint64_t>((2 * i + 1) % 4) * step + static_cast<uint64_t>((2 * i + 1) / 4);
    }
  }
};

SD_INLINE void interleave(const V (&z)[4], V* out) {
#if defined(SOFTDIFF_ISA_AVX512)
  __m512 f[4];
  for (int j = 0; j < 4; ++j) f[j] = reinterpret_cast<__m512>(z[j]);
  const __m512d t0 = _mm512_castps_pd(_mm512_unpacklo_ps(f[0], f[1])), t1 = _mm512_castps_pd(_mm512_unpackhi_ps(f[0], f[1]));
  const __m512d t2 = _mm512_castps_pd(_mm512_unpacklo_ps(f[2], f[3])), t3 = _mm512_castps_pd(_mm512_unpackhi_ps(f[2], f[3]));
  out[0] = reinterpret_cast<V>(_mm512_unpacklo_pd(t0, t2));
  out[1] = reinterpret_cast<V>(_mm512_unpackhi_pd(t0, t2));
  out[2] = reinterpret_cast<V>(_mm512_unpacklo_pd(t1, t3));
  out[3] = reinterpret_cast<V>(_mm512_unpackhi_pd(t1, t3));
#elif defined(SOFTDIFF_ISA_AVX2)
  __m256 f[4];
  for (int j = 0; j < 4; ++j) f[j] = reinterpret_cast<__m256>(z[j]);
  const __m256d t0 = _mm256_castps_pd(_mm256_unpacklo_ps(f[0], f[1])), t1 = _mm256_castps_pd(_mm256_unpackhi_ps(f[0], f[1]));
  const __m256d t2 = _mm256_castps_pd(_mm256_unpacklo_ps(f[2], f[3])), t3 = _mm256_castps_pd(_mm256_unpackhi_ps(f[2], f[3]));
  out[0] = reinterpret_cast<V>(_mm256_unpacklo_pd(t0, t2));
  out[1] = reinterpret_cast<V>(_mm256_unpackhi_pd(t0, t2));
  out[2] = reinterpret_cast<V>(_mm256_unpacklo_pd(t1, t3));
  out[3] = reinterpret_cast<V>(_mm256_unpackhi_pd(t1, t3));
#else
  for (int v = 0; v < 4; ++v) {
    out[v] = V{z[0][v], z[1][v], z[2][v], z[3][v]};
  }
#endif
}

// A number known to the compiler, as an argument.
template <int N>
struct Count {
  static constexpr int value = N;
};

// The 4 VL normals of VL blocks from `first` on, for each of K numbers `first` that are `apart`. Two at once keep the
// arithmetic busy that one, a chain of ten rounds and Box-Muller, leaves to wait for itself.
template <int K>
SD_INLINE void normals(const Stream& stream, const Blocks& blocks, uint64_t first, uint64_t apart, V (&out)[4 * K]) {
  // Of a lane only the low half is ever read, so that what gathers in the high half does no harm.
  const auto key = [](uint64_t k) SD_LAMBDA { return Q{} + k; };
  Q x[2 * K][4];  // even lanes' counters, odd lanes' counters, and so on
  SD_UNROLL
  for (int i = 0; i < 2 * K; ++i) {
    const Q block = (i % 2 == 0 ? blocks.even : blocks.odd) + (first + static_cast<uint64_t>(i / 2) * apart);
    const Q p0 = mul_low(block, kPhiloxMul0);
    const Q p1 = mul_low((p0 >> 32) ^ key(stream.first), kPhiloxMul1);
    const Q q0 = mul_low((p1 >> 32) ^ key(stream.second[0]), kPhiloxMul0);
    const Q q1 = mul_low(p0 ^ key(stream.second[1]), kPhiloxMul1);
    x[i][0] = xor3(q1 >> 32, p1, key(stream.k[2][0])), x[i][1] = q1;
    x[i][2] = (q0 >> 32) ^ key(stream.third), x[i][3] = q0;
  }
  for (int round = 3; round < kPhiloxRounds - 1; ++round) {
    const Q k0 = key(stream.k[round][0]), k1 = key(stream.k[round][1]);
    SD_UNROLL
    for (int i = 0; i < 2 * K; ++i) {
      const Q y0 = mul_low(x[i][0], kPhiloxMul0), y1 = mul_low(x[i][2], kPhiloxMul1);
      x[i][0] = xor3(y1 >> 32, x[i][1], k0), x[i][1] = y1, x[i][2] = xor3(y0 >> 32, x[i][3], k1), x[i][3] = y0;
    }
  }
  // The last round packs both sets into whole words before it combines them.
  const uint64_t last0 = stream.k[kPhiloxRounds - 1][0], last1 = stream.k[kPhiloxRounds - 1][1];
  U radius[2 * K], angle[2 * K];
  SD_UNROLL
  for (int g = 0; g < K; ++g) {
    const Q(&a)[4] = x[2 * g], (&b)[4] = x[2 * g + 1];
    const Q a0 = mul_low(a[0], kPhiloxMul0), a1 = mul_low(a[2], kPhiloxMul1);
    const Q b0 = mul_low(b[0], kPhiloxMul0), b1 = mul_low(b[2], kPhiloxMul1);
    radius[2 * g] = reinterpret_cast<U>(xor3(pack_high(a1, b1), pack_low(a[1], b[1]), key(last0 | last0 << 32)));
    radius[2 * g + 1] = reinterpret_cast<U>(xor3(pack_high(a0, b0), pack_low(a[3], b[3]), key(last1 | last1 << 32)));
    angle[2 * g] = reinterpret_cast<U>(pack_low(a1, b1)), angle[2 * g + 1] = reinterpret_cast<U>(pack_low(a0, b0));
  }
  V z0[2 * K], z1[2 * K];
  box_muller(radius, angle, z0, z1);
  SD_UNROLL
  for (int g = 0; g < K; ++g) interleave({z0[2 * g], z1[2 * g], z0[2 * g + 1], z1[2 * g + 1]}, out + 4 * g);
}

// Words of blocks first .. first + count - 1 into 4 count floats; writes whole groups of VL blocks,
// so that `out` must have room for the next multiple of 4 VL floats.
inline void fill_normals(const Stream& stream, uint64_t first, int64_t count, float* out) {
  const Blocks blocks(VL / 4);
  const auto fill = [&](int64_t i, auto groups) SD_LAMBDA {
    V n[4 * groups.value];
    normals<groups.value>(stream, blocks, first + static_cast<uint64_t>(i), VL, n);
    SD_UNROLL
    for (int v = 0; v < 4 * groups.value; ++v) store(out + 4 * i + v * VL, n[v]);
  };
  int64_t i = 0;
  for (; i + VL < count; i += 2 * VL) fill(i, Count<2>{});
  if (i < count) fill(i, Count<1>{});
}

}  // namespace softdiff::SOFTDIFF_ISA
