// SPDX-License-Identifier: Apache-2.0
// Tables of the fast DCT of one length, shared by all instruction sets. Built once per length.
//
// The transform R is the DCT-II without its normalisation, R[k, i] = sum x_i cos(pi k (2i+1) / 2n), in
// an order of its own: frequency k lies at position `position[k]`. The orthonormal DCT-II is
// u_k = norm[k] (R x)_k, so that D^T diag(g) D = R^T diag(g norm^2) R, and no stage needs a scaling.
//
// n = 2^j m with m odd. A DCT-II of even n splits by a butterfly into a DCT-II and a DCT-IV of n/2;
// a DCT-IV of even n into two DCT-II of n/2 by plane rotations before and a butterfly after. (Both
// splits are orthogonal up to scale, hence stable: Plonka & Tasche 2005.) Odd lengths are dense.
#pragma once

#include <cstdint>

namespace softdiff {

struct Level {
  int32_t n = 1;
  const Level* half = nullptr;  // of n / 2 where n is even
  // DCT-IV of even n: for i < n/2, x_i and x_{n-1-i} become a = cos x + sin x', b = sin_b x + cos_b x'.
  const float* rotation = nullptr;  // [n/2][4]: cos, sin, sin_b, cos_b
  // DCT-IV of even n, after the halves: places of U[k] and T[n/2 - k], k = 1 .. n/2 - 1.
  const int32_t* pairs = nullptr;  // [n/2 - 1][2]
  // Odd n: rows k, columns i. The DCT-II is folded: even rows see sums, odd rows differences.
  const float* dense2_even = nullptr;  // [(n+1)/2][(n+1)/2]
  const float* dense2_odd = nullptr;   // [(n-1)/2][(n-1)/2]
  const float* dense4 = nullptr;       // [n][n], symmetric
  const float* dense2_even_t = nullptr;
  const float* dense2_odd_t = nullptr;
};

struct Plan {
  int32_t n = 1;
  const Level* level = nullptr;
  const int32_t* position = nullptr;   // of frequency k
  const float* norm = nullptr;         // [n], by frequency
  const float* norm_square = nullptr;  // [n], by frequency
  // The same by position, padded with zeros to a multiple of 16.
  const float* position_norm = nullptr;
  const float* position_square = nullptr;       // k^2
  const float* position_norm_square = nullptr;  // norm^2
};

// Thread-safe; the plan lives as long as the process.
const Plan* plan_of(int64_t n);

}  // namespace softdiff
