// SPDX-License-Identifier: Apache-2.0
// Tables of the fast DCT of one length, shared by all instruction sets; plan_cache.h keeps them.
//
// The transform R is the DCT-II without its normalisation, R[k, i] = sum x_i cos(pi k (2i+1) / 2n), in
// an order of its own: frequency k lies at position `position[k]`. The orthonormal DCT-II is
// u_k = norm[k] (R x)_k, so that D^T diag(g) D = R^T diag(g norm^2) R, and no stage needs a scaling.
//
// n = 2^j m with m odd. A DCT-II of even n splits by a butterfly into a DCT-II and a DCT-IV of n/2;
// a DCT-IV of even n into two DCT-II of n/2 by plane rotations before and a butterfly after. (Both
// splits are orthogonal up to scale, hence stable: Plonka & Tasche 2005.) Odd lengths are dense up to
// kDense2 and kDense4, and above made of chirps.
#pragma once

#include <cstdint>

namespace softdiff {

// The longest odd DCT-II and DCT-IV by dense tables, of n^2 numbers and as many operations; each from where
// chirps, of n log n, are faster. Set by measurement: AVX-512, AVX2 and portable on a Sapphire Rapids core.
constexpr int32_t kDense2 = 700, kDense4 = 350;

struct Level;

// y_r = sum_i x_i cos(theta (r + 1/2)(i + 1/2)) for r, i < n, by two convolutions (Bluestein's way, in real numbers).
// With a = theta/2 ((r + 1/2)^2 + (i + 1/2)^2) and b the angle in question, the symmetric convolutions that a
// DCT-II makes diagonal have, for kernels h(d) = cos(theta/2 d^2) and g(d) = sin(theta/2 d^2), the entries
//   h(r - i) + h(r + i + 1) = 2 cos a cos b,     g(r - i) + g(r + i + 1) = 2 sin a cos b,
// and cos b = cos a (cos a cos b) + sin a (sin a cos b), where a is a sum of one part by r and one by i.
struct Chirp {
  int32_t n = 0;
  const Level* level = nullptr;  // of the convolutions: at least as long as the largest r + i + 1
  const float* gains = nullptr;  // [level->n][2]: of h and g, by position, with the DCT's norm^2
  const float* in = nullptr;     // [n][2]: cos and sin of theta/2 (i + 1/2)^2
  const float* out = nullptr;    // [n][2]: the same times 1/2 and, where an output is to be negated, -1
};

struct Level {
  int32_t n = 1;
  const Level* half = nullptr;  // of n / 2 where n is even
  // DCT-IV of even n: for i < n/2, x_i and x_{n-1-i} are turned by pi (2i+1) / 4n: `rotate` in ../dct_small.h.
  const float* rotation = nullptr;  // [n/2][2]: the sine, and the tangent of half the angle
  // DCT-IV of even n, after the halves: places of U[k] and T[n/2 - k], k = 1 .. n/2 - 1.
  const int32_t* pairs = nullptr;  // [n/2 - 1][2]
  int32_t zero = 0;                // place of U[0]; that of T[0] is n/2 further on
  // Odd n: rows k, columns i. The DCT-II is folded: even rows see sums, odd rows differences.
  const float* dense2_even = nullptr;  // [(n+1)/2][(n+1)/2]
  const float* dense2_even_t = nullptr;
  const float* dense2_odd = nullptr;  // [(n-1)/2][(n-1)/2], symmetric
  const float* dense4 = nullptr;      // [n][n], symmetric; only where n is a part of a longer length
  // The same where there are no dense tables.
  const Chirp *chirp2_even = nullptr, *chirp2_odd = nullptr, *chirp4 = nullptr;
};

struct Plan {
  int32_t n = 1;
  int32_t spare = 0;  // vectors that the transforms need beside 2 n
  const Level* level = nullptr;
  const int32_t* position = nullptr;   // of frequency k
  const float* norm = nullptr;         // [n], by frequency
  const float* norm_square = nullptr;  // [n], by frequency
  // The same by position, padded with zeros to a multiple of 16.
  const float* position_norm = nullptr;
  const float* position_square = nullptr;       // k^2
  const float* position_norm_square = nullptr;  // norm^2
};

}  // namespace softdiff
