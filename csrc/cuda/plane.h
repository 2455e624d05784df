// SPDX-License-Identifier: Apache-2.0
// One block, one plane of up to 128 px a side, one pass over global memory. The plane is folded into four
// quadrants on load; a warp owns a strip of one quadrant's rows and chains DCT, mask and IDCT along the other
// axis in registers; shared memory is crossed once between the two products along the columns.
#pragma once

#include "cells.h"
#include "ops.h"
#include "products.h"

namespace softdiff::cuda {

constexpr int kPlaneSide = 128;

struct PlaneTables {
  Table h, w;
};

// For quadrants of up to kTiles tiles of 16 columns.
template <int kTiles>
struct PlaneShape {
  // Strips of 16 rows, or of 32 where a quadrant is 32 wide: those share the operand's fragments.
  static constexpr int kRows = kTiles == 2 ? 2 : 1;
  static constexpr int kCells = kTiles == 1 ? 1 : 2;
  static constexpr int kStride = 16 * kTiles + 8;  // free of bank conflicts for ldmatrix
  static constexpr int kMostThreads = kTiles == 2 ? 256 : 512;
  static int threads(int tiles_h) { return 128 * ((tiles_h + kRows - 1) / kRows); }
  static size_t shared(int tiles_h) {
    return gains_room(kPlaneSide, 32 * kTiles) + room<Values>(1) + 3 * room<float>(16) +
           room<uint32_t>(4 * 16 * tiles_h * kStride);
  }
};

template <class Op, int kTiles>
__global__ void __launch_bounds__(PlaneShape<kTiles>::kMostThreads, kTiles == 2 && !Op::kMix ? 2 : 1)
    plane_kernel(const __grid_constant__ typename Op::Args a, const __grid_constant__ PlaneTables tables) {
  using Shape = PlaneShape<kTiles>;
  constexpr int kRows = Shape::kRows, kCells = Shape::kCells, kStride = Shape::kStride;
  constexpr bool kSpectrumIn = Op::kShift == Shift::inverse, kSpectrumOut = Op::kShift == Shift::forward;
  using S = Strip<kRows, kTiles>;
  const Op op{a};
  const Sizes s(static_cast<int>(a.shape.h), static_cast<int>(a.shape.w));
  const int channels = static_cast<int>(a.shape.c), b = blockIdx.x / channels, c = blockIdx.x % channels;
  const int tiles_h = tables.h.tiles, tiles_w = tables.w.tiles, height = 16 * tiles_h;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, threads = blockDim.x;

  Arena arena;
  const Gains gains(arena, kPlaneSide, 32 * kTiles, kPlaneSide / 2, 16 * kTiles);
  Values* shared_values = arena.take<Values>(1);
  float* largest_in = arena.take<float>(16);
  float* largest_mid = arena.take<float>(16);
  float* energies = arena.take<float>(16);
  const int area = 4 * height * kStride;
  uint32_t* words = arena.take<uint32_t>(area);
  const auto quadrant = [&](int q) {
    uint16_t* high = reinterpret_cast<uint16_t*>(words) + q * height * kStride;
    return Tile{high, high + area, kStride};
  };
  const auto store = [&](const Tile& tile, int row, int column, float x, float y) {
    uint32_t high, low;
    split(x, y, high, low);
    *reinterpret_cast<uint32_t*>(tile.high + row * kStride + column) = high;
    *reinterpret_cast<uint32_t*>(tile.low + row * kStride + column) = low;
  };

  const int strips = (tiles_h + kRows - 1) / kRows;
  const int mine = warp / strips, parity_h = mine >> 1, parity_w = mine & 1;
  const int first = warp % strips * kRows;  // tile of rows
  const Tile own = quadrant(mine);
  if (thread == 0) {
    Values v = op.values(b);
    v.kept_h = kept(v, s.h), v.kept_w = kept(v, s.w);
    *shared_values = v;
  }

  S strip, mixed;
  float energy = 0.0f;
  // Read again where they are used: registers are scarce in between.
  const auto scale_in = [&] { return power(block_largest(largest_in)); };
  const auto cut = [&](int all, int frequencies) {
    return Op::kShift == Shift::filter && !Op::kMix ? ((frequencies + 1) / 2 + 15) / 16 : all;
  };
  if constexpr (Op::kMix) mixed.clear();
  const int inputs = [&] {
    if constexpr (Op::kMix) return a.count;
    return 1;
  }();

#pragma unroll 1
  for (int input = 0; input < inputs; ++input) {
    Cell cells[kCells];
    read_cells<kSpectrumIn>(Plane(op.source(input, 0), b, c), s, 4 * kTiles, cells);
    if constexpr (Op::kSources == 2) {
      Cell others[kCells];
      read_cells<kSpectrumIn>(Plane(op.source(input, 1), b, c), s, 4 * kTiles, others);
#pragma unroll
      for (int n = 0; n < kCells; ++n)
#pragma unroll
        for (int t = 0; t < 16; ++t) cells[n].quadrant[t / 8][t / 4 % 2][t % 4] -= others[n].quadrant[t / 8][t / 4 % 2][t % 4];
    }
    float most = 0.0f;
#pragma unroll
    for (int n = 0; n < kCells; ++n) {
      if constexpr (!kSpectrumIn) fold(cells[n]);
#pragma unroll
      for (int t = 0; t < 16; ++t) most = fmaxf(most, fabsf(cells[n].quadrant[t / 8][t / 4 % 2][t % 4]));
    }
    most = warp_largest(most);
    if (lane == 0) largest_in[warp] = most;
    __syncthreads();  // also: the last input's products have been taken, the values are there
    const float up = scale_in();
    if constexpr (Op::kShift == Shift::filter && !Op::kMix) {
      fill(*shared_values, gains, s.h, s.w, thread, threads);
    }
#pragma unroll
    for (int n = 0; n < kCells; ++n) {
      const int index = thread + n * threads, row = index / (4 * kTiles), column = index % (4 * kTiles) * 4;
      if (row >= height) continue;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float(&v)[4] = cells[n].quadrant[q >> 1][q & 1];
        store(quadrant(q), row, column, v[0] * up, v[1] * up);
        store(quadrant(q), row, column + 2, v[2] * up, v[3] * up);
      }
    }
    __syncthreads();

    // Both products along the rows' axis, one after the other in registers. `strip` is kTableGain times the
    // spectrum (for the inverse alone: the image's quadrant).
    if (first < cut(tiles_h, shared_values->kept_h)) {
      const int cut_w = cut(tiles_w, shared_values->kept_w);
      times_shared<kRows, kTiles>(tables.h, kSpectrumIn, parity_h, first, tiles_h, own, tiles_w, tiles_h, strip);
      const Operand<kRows, kTiles> operand(strip, 1.0f / kTableGain);
      times_transposed<kRows, kTiles>(operand, tables.w, kSpectrumIn, parity_w, cut_w, tiles_w, strip);
    } else {
      strip.clear();
    }
    if constexpr (Op::kMix) {
      const float factor = inverse_power(scale_in()) * (1.0f / kTableGain);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int k = 2 * (16 * (first + r) + lane / 4 + i / 2 * 8) + parity_h;
            const int l = 2 * (8 * n + lane % 4 * 2 + i % 2) + parity_w;
            if (k >= s.h || l >= s.w) continue;
            mixed.at[r][n][i] = fmaf(op.mask(input, b, c, k, l), strip.at[r][n][i] * factor, mixed.at[r][n][i]);
            if (input == inputs - 1 && op.noisy()) mixed.at[r][n][i] += op.noise(b, c, k, l);
          }
      if (input + 1 < inputs) __syncthreads();
    }
  }

  float down;  // what the result is multiplied by
  if constexpr (Op::kShift == Shift::filter) {
    const Values& v = *shared_values;
    if constexpr (Op::kMix) {
      strip = mixed;
      down = 1.0f;
    } else {
      const float constant = mask_constant(v);
      // Energies are taken of the spectrum itself, of the scaled image.
      const float factor = Op::kEnergy ? 1.0f / kTableGain : 1.0f;
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = min(16 * (first + r) + lane / 4 + 8 * half, height - 1);
          const int k = parity_h * gains.half_h + row;
          const bool real = 2 * row + parity_h < s.h;
          const float h0 = real ? gains.h[0][k] : 0.0f, h1 = real && v.reverse ? gains.h[1][k] : 0.0f;
#pragma unroll
          for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int column = 8 * n + lane % 4 * 2 + i;
              const int l = parity_w * gains.half_w + column;
              float m = 0.0f;
              if (2 * column + parity_w < s.w) {
                m = fmaf(h0, gains.w[0][l], constant);
                if (v.reverse) m = fmaf(h1, gains.w[1][l], m);
              }
              float& u = strip.at[r][n][2 * half + i];
              u = op.apply(u * factor, m, energy);
            }
        }
      down = inverse_power(scale_in()) * (Op::kEnergy ? 1.0f : 1.0f / kTableGain);
    }
    if constexpr (Op::kEnergy) {
      float sum = energy;
#pragma unroll
      for (int i = 16; i > 0; i >>= 1) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, i);
      if (lane == 0) energies[warp] = sum;
    }
    if (op.backward()) {
      // A strip's masked spectrum, then all of what it gives, are scaled again: a mask may leave little.
      const float up_row = power(warp_largest(strip.largest()));
      if (first < cut(tiles_h, v.kept_h)) {
        const Operand<kRows, kTiles> operand(strip, up_row);
        times_transposed<kRows, kTiles>(operand, tables.w, true, parity_w, tiles_w, cut(tiles_w, v.kept_w), strip);
      }
      const float down_row = inverse_power(up_row) * (1.0f / kTableGain);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) strip.at[r][n][i] *= down_row;
      const float most = warp_largest(strip.largest());
      if (lane == 0) largest_mid[warp] = most;
    }
    __syncthreads();  // the first products have been taken
    if constexpr (Op::kEnergy) {
      if (thread == 0) {
        double sum = 0.0;
        for (int i = 0; i < threads / 32; ++i) sum += energies[i];
        const double true_scale = inverse_power(scale_in());
        a.plane_loss[blockIdx.x] = sum * true_scale * true_scale;
      }
    }
    if (!op.backward()) return;
    const float up_mid = power(block_largest(largest_mid));
    const int cut_h = cut(tiles_h, v.kept_h);
    if (first < cut_h) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (first + r >= tiles_h) continue;
#pragma unroll
        for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if (8 * n >= 16 * tiles_w) continue;
            store(own, 16 * (first + r) + lane / 4 + 8 * half, 8 * n + lane % 4 * 2, strip.at[r][n][2 * half] * up_mid,
                  strip.at[r][n][2 * half + 1] * up_mid);
          }
      }
    }
    __syncthreads();
    times_shared<kRows, kTiles>(tables.h, true, parity_h, first, tiles_h, own, tiles_w, cut_h, strip);
    down *= inverse_power(up_mid) * (1.0f / kTableGain);
  } else {
    down = inverse_power(scale_in()) * (1.0f / kTableGain);
  }

  // Through shared memory once more, as float32, so that a thread has whole groups of four pixels.
  __syncthreads();
  float* result = reinterpret_cast<float*>(words);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (first + r >= tiles_h) continue;
#pragma unroll
    for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = mine * height + 16 * (first + r) + lane / 4 + 8 * half;
        *reinterpret_cast<float2*>(result + row * kStride + 8 * n + lane % 4 * 2) =
            make_float2(strip.at[r][n][2 * half] * down, strip.at[r][n][2 * half + 1] * down);
      }
  }
  __syncthreads();
  const Values& v = *shared_values;
#pragma unroll 1
  for (int index = thread; index < height * 4 * kTiles; index += threads) {
    const int row = index / (4 * kTiles), column = index % (4 * kTiles) * 4;
    Cell cell;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float4 four = *reinterpret_cast<const float4*>(result + (q * height + row) * kStride + column);
      float(&to)[4] = cell.quadrant[q >> 1][q & 1];
      to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    }
    const auto finish = [&](int y, int x, int from, int to, float(&value)[4]) { op.finish(v, b, c, y, x, from, to, value); };
    if constexpr (kSpectrumOut) {
      interleave(s, row, column, cell, finish);
    } else {
      unfold(s, row, column, cell, finish);
    }
  }
}

}  // namespace softdiff::cuda
