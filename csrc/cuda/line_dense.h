// SPDX-License-Identifier: Apache-2.0
// A pass over lines of any length by dense float32 products, folded by parity: half as many multiply-adds as the matrix has
// numbers. For lengths without a codelet (line_fast.h). A block takes 8 lines.
#pragma once

#include "line_pass.h"

namespace softdiff::cuda {

constexpr int kDenseThreads = 128, kDenseLines = 8;

inline size_t dense_lines_shared(int side) {
  return 2 * room<float>(2 * side * kDenseLines) + 2 * room<float>(2 * side) + room<Values>(1) + room<float>(kDenseThreads / 32);
}

// to[p][r] = sum over i of matrix[p][r][i] from[p][i], for 8 lines. 4 x 4 sums a thread; 32 terms at a time, so that
// rounding grows with the root of 32 + side / 32.
SOFTDIFF_DEVICE void dense_product(const float* matrix, int side, const float* from, float* to) {
#pragma unroll 1
  for (int item = threadIdx.x; item < side; item += kDenseThreads) {
    const int columns = item % 2 * 4, group = item / 2, parity = group / (side / 4), r = group % (side / 4) * 4;
    const float* m = matrix + (parity * side + r) * side;
    const float* x = from + parity * side * kDenseLines + columns;
    float total[4][4] = {};
#pragma unroll 1
    for (int start = 0; start < side; start += 32) {
      float sum[4][4] = {};
#pragma unroll 1
      for (int i = start; i < min(start + 32, side); i += 4) {
        float by[4][4], number[4][4];
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          Float32::value(*reinterpret_cast<const float4*>(m + t * side + i), by[t]);
          Float32::value(*reinterpret_cast<const float4*>(x + (i + t) * kDenseLines), number[t]);
        }
#pragma unroll
        for (int t = 0; t < 64; ++t) sum[t / 16][t % 4] = fmaf(by[t / 16][t / 4 % 4], number[t / 4 % 4][t % 4], sum[t / 16][t % 4]);
      }
#pragma unroll
      for (int t = 0; t < 16; ++t) total[t / 4][t % 4] += sum[t / 4][t % 4];
    }
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      *reinterpret_cast<float4*>(to + (parity * side + r + t) * kDenseLines + columns) = Float32::raw(total[t]);
    }
  }
  __syncthreads();
}

template <bool kColumns>
__global__ void __launch_bounds__(kDenseThreads, 5)  // left alone, ptxas stops at 80 registers, and spills
    dense_lines_kernel(const __grid_constant__ CorruptArgs a, const __grid_constant__ LineParameters p) {
  constexpr int kLines = kDenseLines;
  const LineSpot spot(a, p, static_cast<int>(blockIdx.x));
  const int n = static_cast<int>(kColumns ? a.shape.h : a.shape.w), side = p.side, thread = threadIdx.x;
  const int lines_here = static_cast<int>(kColumns ? a.shape.w : a.shape.h);
  const bool spectrum_in = p.stage == Stage::inverse, spectrum_out = p.stage == Stage::forward;

  Arena arena;
  float* x = arena.take<float>(2 * side * kLines);  // [parity][place][line]
  float* y = arena.take<float>(2 * side * kLines);
  float* along[2];
  for (int i = 0; i < 2; ++i) along[i] = arena.take<float>(2 * side);
  Values* shared_values = arena.take<Values>(1);
  float* energies = arena.take<float>(kDenseThreads / 32);
  // Four neighbours of a row: place i of the lines from `of` on, or places from i on of line `of`.
  const auto each_four = [&](auto visit) {
#pragma unroll 1
    for (int item = thread; item < p.across * (kColumns ? n : kLines); item += kDenseThreads) {
      const int slow = over(item, p.reciprocal), fast = item - slow * p.across;
      const int i = kColumns ? slow : 4 * fast, of = kColumns ? 4 * fast : slow, at_line = spot.first_line + of;
      const int last = kColumns ? max(min(lines_here - at_line, 4), 0) : at_line < lines_here ? max(min(n - i, 4), 0) : 0;
      visit(i, of, at_line, last);
    }
  };

  if (thread == 0) *shared_values = line_values(a, p, spot.b);
  // As the lines are, then by parity.
  const LineSource source(p, spot.b, spot.c);
  each_four([&](int i, int of, int at_line, int last) {
    float four[4];
    source.read4<false>(kColumns ? i : at_line, kColumns ? at_line : i, last, four);
    if constexpr (kColumns) {
      *reinterpret_cast<float4*>(y + i * kLines + of) = Float32::raw(four);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (i + e < n) y[(i + e) * kLines + of] = four[e];
      }
    }
  });
  __syncthreads();
  const Values& v = *shared_values;
#pragma unroll 1
  for (int item = thread; item < side * kLines; item += kDenseThreads) {
    const int i = item / kLines, of = item % kLines, mirror = n - 1 - i;
    float even = 0.0f, odd = 0.0f;
    if (spectrum_in) {
      if (2 * i < n) even = y[2 * i * kLines + of];
      if (2 * i + 1 < n) odd = y[(2 * i + 1) * kLines + of];
    } else if (i <= mirror) {
      even = y[item];
      if (i < mirror) {
        const float other = y[mirror * kLines + of];
        odd = even - other, even += other;
      }
    }
    x[item] = even, x[side * kLines + item] = odd;
  }
  if (p.stage == Stage::filter) {
    for (int k = thread; k < 2 * side; k += kDenseThreads) {
      float first = 0.0f, second = 0.0f;
      if (k < n) gain_at(v, p.unit * static_cast<float>(k), kColumns, first, second);
      if (k == 0) first *= p.norm[0], second *= p.norm[0];
      const int to = k % 2 * side + k / 2;
      along[0][to] = first, along[1][to] = second;
    }
  }
  __syncthreads();
  dense_product(p.table + (spectrum_in ? 2 * side * side : 0), side, x, y);
  const float* result = y;

  if (p.stage == Stage::filter) {
    const int of = thread % kLines;
    float w0 = 1.0f, w1 = 0.0f, energy = 0.0f;
    if (p.whole_mask) gain_at(v, p.unit_across * static_cast<float>(spot.first_line + of), false, w0, w1);
    const float constant = p.whole_mask ? mask_constant(v) : 0.0f;
#pragma unroll 1
    for (int k = thread / kLines; k < 2 * side; k += kDenseThreads / kLines) {
      const float m = fmaf(along[0][k], w0, fmaf(along[1][k], w1, constant));
      float& u = y[k * kLines + of];
      u *= m;
      if (p.energy) energy = fmaf(u, u, energy), u *= m;
    }
    if (p.energy) {
      energy = warp_sum(energy);
      if (thread % 32 == 0) energies[thread / 32] = energy;
    }
    __syncthreads();
    if (p.energy && thread == 0) p.parts[blockIdx.x + static_cast<int64_t>(p.first_plane) * p.slabs] = block_sum(energies);
    if (!p.backward) return;
    dense_product(p.table + 2 * side * side, side, y, x);
    result = x;
  }

  const LineResult<!kColumns> out(a, p, v, spot.b, spot.c);
  each_four([&](int i, int of, int at_line, int last) {
    if (last == 0) return;
    float four[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int place = kColumns ? i : min(i + e, n - 1), line = kColumns ? of + e : of;
      if (spectrum_out) {
        four[e] = result[(place % 2 * side + place / 2) * kLines + line];
      } else {
        const int half = min(place, n - 1 - place);
        const float even = result[half * kLines + line], odd = result[(side + half) * kLines + line];
        four[e] = place == half ? even + odd : even - odd;
      }
    }
    out.template write4<false>(kColumns ? i : at_line, kColumns ? at_line : i, last, four);
  });
}

}  // namespace softdiff::cuda
