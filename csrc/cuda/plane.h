// SPDX-License-Identifier: Apache-2.0
// One block, one plane of up to 128 px a side, one pass over global memory. The plane is folded into four
// quadrants on load; a warp owns a strip of one quadrant's rows and chains DCT, mask and IDCT along the other
// axis in registers; shared memory is crossed once between the two products along the columns.
#pragma once

#include "masks.h"
#include "plane_block.h"

namespace softdiff::cuda {

// An input's plane into the four quadrants, folded, scaled to [16, 32), in float16 parts; and the gains.
template <class Op, int kTiles>
SOFTDIFF_DEVICE void load_plane(const Op& op, const Sizes& s, int b, int c, int input, const PlaneMemory<kTiles>& m) {
  using Shape = PlaneShape<kTiles>;
  constexpr bool kSpectrum = Op::kShift == Shift::inverse;
  const int thread = threadIdx.x, threads = blockDim.x;
  Cell cells[Shape::kCells];
  read_cells<kSpectrum>(Plane(op.source(input, 0), b, c), s, Shape::kGroups, cells);
  if constexpr (Op::kSources == 2) {
    Cell others[Shape::kCells];
    read_cells<kSpectrum>(Plane(op.source(input, 1), b, c), s, Shape::kGroups, others);
#pragma unroll
    for (int n = 0; n < Shape::kCells; ++n)
#pragma unroll
      for (int t = 0; t < 16; ++t) cells[n].quadrant[t / 8][t / 4 % 2][t % 4] -= others[n].quadrant[t / 8][t / 4 % 2][t % 4];
  }
  float most = 0.0f;
#pragma unroll
  for (int n = 0; n < Shape::kCells; ++n) {
    if constexpr (!kSpectrum) fold(cells[n]);
#pragma unroll
    for (int t = 0; t < 16; ++t) most = fmaxf(most, fabsf(cells[n].quadrant[t / 8][t / 4 % 2][t % 4]));
  }
  most = warp_largest(most);
  if (thread % 32 == 0) m.largest_in[thread / 32] = most;
  __syncthreads();  // also: the last input's products have been taken, the values are there
  const float up = m.scale_in();
  if constexpr (Op::kShift == Shift::filter && !Op::kMix) {
    const Gains& g = m.gains;
    fill_axis(*m.values, g.h[0], g.h[1], s.h, 0, 2 * g.half_h, g.half_h, true, thread, threads);
    fill_axis(*m.values, g.w[0], g.w[1], s.w, 0, 2 * g.half_w, g.half_w, false, thread, threads);
  }
#pragma unroll
  for (int n = 0; n < Shape::kCells; ++n) {
    const int index = thread + n * threads, row = index / Shape::kGroups, column = index % Shape::kGroups * 4;
    if (row >= m.height()) continue;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float(&v)[4] = cells[n].quadrant[q >> 1][q & 1];
      const Tile tile = m.quadrant(q);
      tile.put(row, column, v[0] * up, v[1] * up);
      tile.put(row, column + 2, v[2] * up, v[3] * up);
    }
  }
  __syncthreads();
}

// Adds an input's spectrum under its own mask, and masked noise once.
template <int kTiles, class Op, class S>
SOFTDIFF_DEVICE void mix_strip(const Op& op, const Sizes& s, int b, int c, int input, const PlaneRole<kTiles>& role,
                               float factor, const S& strip, S& mixed) {
#pragma unroll
  for (int r = 0; r < PlaneShape<kTiles>::kRows; ++r)
#pragma unroll
    for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = 2 * role.row(r, i) + role.parity_h, l = 2 * role.column(n, i) + role.parity_w;
        if (k >= s.h || l >= s.w) continue;
        mixed.at[r][n][i] = fmaf(op.mask(input, b, c, k, l), strip.at[r][n][i] * factor, mixed.at[r][n][i]);
        if (input == 0 && op.noisy()) mixed.at[r][n][i] += op.noise(b, c, k, l);
      }
}

// The result, times `down`, through shared memory as float32, so that a thread has whole groups of four pixels.
template <class Op, int kTiles, class S>
SOFTDIFF_DEVICE void finish_plane(const Op& op, const Sizes& s, const PlaneMemory<kTiles>& m,
                                  const PlaneRole<kTiles>& role, int tiles_h, float down, const S& strip) {
  using Shape = PlaneShape<kTiles>;
  __syncthreads();
  float* result = reinterpret_cast<float*>(m.words);
#pragma unroll
  for (int r = 0; r < Shape::kRows; ++r) {
    if (role.first + r >= tiles_h) continue;
#pragma unroll
    for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        float* to = result + (role.quadrant * m.height() + role.row(r, i)) * Shape::kStride + role.column(n, i);
        *reinterpret_cast<float2*>(to) = make_float2(strip.at[r][n][i] * down, strip.at[r][n][i + 1] * down);
      }
  }
  __syncthreads();
  const Values& v = *m.values;
  const int channels = static_cast<int>(op.a.shape.c), plane = here(static_cast<int>(blockIdx.x));
  const int b = plane / channels, c = plane % channels;
#pragma unroll 1
  for (int index = threadIdx.x; index < m.height() * Shape::kGroups; index += blockDim.x) {
    const int row = index / Shape::kGroups, column = index % Shape::kGroups * 4;
    Cell cell;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float4 four = *reinterpret_cast<const float4*>(result + (q * m.height() + row) * Shape::kStride + column);
      float(&to)[4] = cell.quadrant[q >> 1][q & 1];
      to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    }
    const auto finish = [&](int y, int x, int from, int to, float(&value)[4]) { op.finish(v, b, c, y, x, from, to, value); };
    if constexpr (Op::kShift == Shift::forward) {
      interleave(s, row, column, cell, finish);
    } else {
      unfold(s, row, column, cell, finish);
    }
  }
}

template <class Op, int kTiles>
__global__ void __launch_bounds__(PlaneShape<kTiles>::kMostThreads, kTiles == 2 && !Op::kMix ? 2 : 1)
    plane_kernel(const __grid_constant__ typename Op::Args a, const __grid_constant__ PlaneTables tables) {
  constexpr int kRows = PlaneShape<kTiles>::kRows;
  constexpr bool kInverse = Op::kShift == Shift::inverse, kMasked = Op::kShift == Shift::filter;
  using Role = PlaneRole<kTiles>;
  using S = Strip<kRows, kTiles>;
  const Op op{a};
  const Sizes s(static_cast<int>(a.shape.h), static_cast<int>(a.shape.w));
  const int channels = static_cast<int>(a.shape.c), b = blockIdx.x / channels, c = blockIdx.x % channels;
  const int tiles_h = tables.h.tiles, tiles_w = tables.w.tiles;
  Arena arena;
  const PlaneMemory<kTiles> m(arena, tables);
  if (threadIdx.x == 0) {
    Values v = op.values(b);
    v.kept_h = tiles_of(kept(v, s.h)), v.kept_w = tiles_of(kept(v, s.w));
    *m.values = v;
  }
  const auto cut = [&](int all, int kept) { return kMasked && !Op::kMix ? kept : all; };

  S strip, mixed;
  if constexpr (Op::kMix) mixed.clear();
  int inputs = 1;
  if constexpr (Op::kMix) inputs = a.count;
#pragma unroll 1
  for (int input = 0; input < inputs; ++input) {
    load_plane(op, s, b, c, input, m);
    const Role role(tiles_h);
    // Two products, one after the other in registers. `strip` is then kTableGain times the scaled plane's
    // spectrum; for the inverse alone, its quadrant.
    if (role.first < cut(tiles_h, m.values->kept_h)) {
      const int columns = cut(tiles_w, m.values->kept_w);
      times_shared<kRows, kTiles>(tables.h, kInverse, role.parity_h, role.first, tiles_h, m.quadrant(role.quadrant), tiles_w,
                                  tiles_h, strip);
      const Operand<kRows, kTiles> operand(strip, 1.0f / kTableGain);
      times_transposed<kRows, kTiles>(operand, tables.w, kInverse, role.parity_w, columns, tiles_w, strip);
    } else {
      strip.clear();
    }
    if constexpr (Op::kMix) {
      mix_strip(op, s, b, c, input, role, inverse_power(m.scale_in()) * (1.0f / kTableGain), strip, mixed);
      __syncthreads();
    }
  }
  const Role role(tiles_h);
  if constexpr (kMasked) {
    const Values& v = *m.values;
    if constexpr (Op::kMix) {
      strip = mixed;
    } else {
      // Energies are taken of the scaled plane's spectrum itself.
      const float factor = Op::kEnergy ? 1.0f / kTableGain : 1.0f;
      const float energy = v.reverse ? mask_strip<true>(op, m, role, factor, strip) : mask_strip<false>(op, m, role, factor, strip);
      if constexpr (Op::kEnergy) {
        const float sum = warp_sum(energy);
        if (role.lane == 0) m.energies[role.warp] = sum;
      }
    }
    const auto rows_kept = [&] { return role.first < cut(tiles_h, v.kept_h); };
    if (op.backward()) {
      // A strip's masked spectrum, then all of what it gives, are scaled again: a mask may leave little.
      const float up = power(warp_largest(strip.largest()));
      if (rows_kept()) {
        const Operand<kRows, kTiles> operand(strip, up);
        times_transposed<kRows, kTiles>(operand, tables.w, true, role.parity_w, tiles_w, cut(tiles_w, v.kept_w), strip);
      }
      strip.scale(inverse_power(up) * (1.0f / kTableGain));
      const float most = warp_largest(strip.largest());
      if (role.lane == 0) m.largest_mid[role.warp] = most;
    }
    __syncthreads();  // the first products have been taken
    if constexpr (Op::kEnergy) {
      if (threadIdx.x == 0) {
        const double scale = inverse_power(m.scale_in());
        a.plane_loss[blockIdx.x] = block_sum(m.energies) * scale * scale;
      }
    }
    if (!op.backward()) return;
    const float up = power(block_largest(m.largest_mid));
    const Tile own = m.quadrant(role.quadrant);
    if (rows_kept()) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (role.first + r >= tiles_h) continue;
#pragma unroll
        for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            own.put(role.row(r, i), role.column(n, i), strip.at[r][n][i] * up, strip.at[r][n][i + 1] * up);
          }
      }
    }
    __syncthreads();
    times_shared<kRows, kTiles>(tables.h, true, role.parity_h, role.first, tiles_h, own, tiles_w, cut(tiles_h, v.kept_h),
                                strip);
  }
  // From shared memory once more: kept over the products, the two scales would cost registers that are not there.
  float down = Op::kMix ? 1.0f : inverse_power(m.scale_in());
  if constexpr (!Op::kMix && !Op::kEnergy) down *= 1.0f / kTableGain;
  if constexpr (kMasked) down *= inverse_power(power(block_largest(m.largest_mid))) * (1.0f / kTableGain);
  finish_plane(op, s, m, role, tiles_h, down, strip);
}

}  // namespace softdiff::cuda
