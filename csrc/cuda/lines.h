// SPDX-License-Identifier: Apache-2.0
// One pass along one axis of planes that are too large for plane.h: a block takes a slab of lines. Passes hand
// over through float32 scratch that the launch keeps small enough for the L2 cache.
//
//   blur, corrupt:        filter columns -> filter rows, finish
//   steps, loss:          transform rows -> transform columns, mask, back -> rows back, finish
//   spectral_mix:         transform rows -> columns, for each input -> mix, columns back -> rows back
//   dct2, idct2:          columns -> rows
#pragma once

#include "line_pass.h"

namespace softdiff::cuda {

template <class Op, bool kColumns, int kSlab>
__global__ void __launch_bounds__(kLineThreads, 1)
    lines_kernel(const __grid_constant__ typename Op::Args a, const __grid_constant__ LineParameters p) {
  using Shape = LineShape<kColumns, kSlab>;
  constexpr int kTasks = Shape::kTasks;
  const Op op{a};
  const int channels = static_cast<int>(a.shape.c), local = blockIdx.x / p.slabs, plane = p.first_plane + local;
  const int b = plane / channels, c = plane % channels;
  const Slab s{static_cast<int>(a.shape.h), static_cast<int>(a.shape.w),
               static_cast<int>(blockIdx.x % p.slabs) * Shape::kLines, Shape::kLines};
  const int n = kColumns ? s.h : s.w, tiles = p.table.tiles;
  const int rows = Shape::rows(tiles), stride = Shape::stride(tiles), groups = kColumns ? Shape::kLines / 4 : 4 * tiles;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const bool spectrum_in = p.stage == Stage::inverse, spectrum_out = p.stage == Stage::forward;

  Arena arena;
  float* along[2];
  float* across[2];
  for (int i = 0; i < 2; ++i) {
    along[i] = arena.take<float>(32 * Shape::kMostTiles);
    across[i] = arena.take<float>(Shape::kLines);
  }
  Values* shared_values = arena.take<Values>(1);
  float* largest_in = arena.take<float>(kLineWarps);
  float* largest_mid = arena.take<float>(kLineWarps);
  float* energies = arena.take<float>(kLineWarps);
  const int area = 2 * rows * stride;
  uint32_t* words = arena.take<uint32_t>(area);
  const auto half = [&](int parity) {
    uint16_t* high = reinterpret_cast<uint16_t*>(words) + parity * rows * stride;
    return Tile{high, high + area, stride};
  };
  // A task is one tile of 16 places of one parity, for all lines.
  const auto task = [&](int i) { return warp + kLineWarps * i; };
  // Row and column in a parity's tile of number i of an accumulator of part r, eight columns e.
  const auto row_of = [&](int tile, int r, int i) { return 16 * (kColumns ? tile : r) + lane / 4 + i / 2 * 8; };
  const auto column_of = [&](int tile, int r, int e, int i) {
    return 16 * (kColumns ? r : tile) + 8 * e + lane % 4 * 2 + i % 2;
  };

  if (thread == 0) *shared_values = op.values(b);
  Strip<kSlab, 1> strip[kTasks];
  int cut = tiles;
  float energy = 0.0f;

  // One product: by D, or by its transpose, over `depth` tiles of what lies in shared memory.
  const auto product = [&](bool transposed, int columns, int depth) {
#pragma unroll
    for (int i = 0; i < kTasks; ++i) {
      strip[i].clear();
      const int parity = task(i) / tiles, tile = task(i) % tiles;
      if (parity > 1 || tile >= columns) continue;
      const Tile x = half(parity);
      const auto add = [&](Strip<kSlab, 1>& sum, int k, bool low_matrix, bool low_lines) {
        const Fragment m(p.table.fragment(transposed, parity, tile, k), low_matrix);
#pragma unroll
        for (int r = 0; r < kSlab; ++r) {
          float(&to)[2][4] = sum.at[r];
          if constexpr (kColumns) {
            const Fragment f = x.second(low_lines, 16 * k, 16 * r);
            mma_f16(to[0], m.at, f.at[0], f.at[1]);
            mma_f16(to[1], m.at, f.at[2], f.at[3]);
          } else {
            const Fragment f = x.first(low_lines, 16 * r, 16 * k);
            mma_f16(to[0], f.at, m.at[0], m.at[2]);
            mma_f16(to[1], f.at, m.at[1], m.at[3]);
          }
        }
      };
#pragma unroll 1
      for (int k = 0; k < depth; ++k) add(strip[i], k, true, false), add(strip[i], k, false, true);
      if constexpr (kTasks == 1) {
#pragma unroll 1
        for (int k = 0; k < depth; ++k) add(strip[i], k, false, false);
      } else {
        // Beyond 256 px truncation would add up to more than the contract allows: four tiles at a time, whose
        // sums are added with rounding. (1024 px: 0.5e-6 instead of 2.2e-6.)
#pragma unroll 1
        for (int start = 0; start < depth; start += 4) {
          Strip<kSlab, 1> part;
          part.clear();
#pragma unroll 1
          for (int k = start; k < min(start + 4, depth); ++k) add(part, k, false, false);
          strip[i].add(part);
        }
      }
    }
  };

  LineCell cells[Shape::kCells];
  const auto take = [&](const Plane& source, LineCell(&to)[Shape::kCells]) {
    with_pixels(source, [&](auto type) {
#pragma unroll
      for (int i = 0; i < Shape::kCells; ++i) {
        const int index = thread + i * kLineThreads;
        read_line_cell<kColumns, decltype(type)>(source, s, spectrum_in, index / groups, index % groups * 4, to[i]);
      }
    });
  };
  const auto from_scratch = [&] { take(Plane(scratch_image(p.from, p), local, 0), cells); };
  const auto from_sources = [&] {
    take(Plane(op.source(p.input, 0), b, c), cells);
    if constexpr (Op::kSources == 2) {
      LineCell others[Shape::kCells];
      take(Plane(op.source(p.input, 1), b, c), others);
#pragma unroll
      for (int i = 0; i < Shape::kCells; ++i)
#pragma unroll
        for (int t = 0; t < 8; ++t) cells[i].parity[t / 4][t % 4] -= others[i].parity[t / 4][t % 4];
    }
  };
  if constexpr (Op::kMix && kColumns) {
    if (p.mix) {
#pragma unroll
      for (int i = 0; i < Shape::kCells; ++i) {
        const int index = thread + i * kLineThreads;
        mix_cell(op, p, s, local, b, c, index / groups, index % groups * 4, cells[i]);
      }
    } else {
      from_scratch();
    }
  } else if constexpr (Op::kSources == 2 && kColumns) {
    from_scratch();
  } else if (p.from != nullptr) {
    from_scratch();
  } else {
    from_sources();
  }
  float most = 0.0f;
#pragma unroll
  for (int i = 0; i < Shape::kCells; ++i) {
    if (!spectrum_in) fold(cells[i]);
#pragma unroll
    for (int t = 0; t < 8; ++t) most = fmaxf(most, fabsf(cells[i].parity[t / 4][t % 4]));
  }
  most = warp_largest(most);
  if (lane == 0) largest_in[warp] = most;
  __syncthreads();  // also: the values are there
  const float up = power(block_largest(largest_in));
  if constexpr (!Op::kMix) {
    if (p.stage == Stage::filter) {
      const Values& v = *shared_values;
      const int half_along = 16 * Shape::kMostTiles;
      fill_axis(v, along[0], along[1], n, 0, 2 * half_along, half_along, kColumns, thread, kLineThreads);
      if (p.whole_mask) fill_axis(v, across[0], across[1], s.w, s.first, s.lines, 0, false, thread, kLineThreads);
      cut = tiles_of(kept(v, n));
    }
  }
#pragma unroll
  for (int i = 0; i < Shape::kCells; ++i) {
    const int index = thread + i * kLineThreads, row = index / groups, column = index % groups * 4;
    if (row >= rows) continue;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const float(&x)[4] = cells[i].parity[q];
      half(q).put(row, column, x[0] * up, x[1] * up);
      half(q).put(row, column + 2, x[2] * up, x[3] * up);
    }
  }
  __syncthreads();
  product(spectrum_in, cut, tiles);

  float down = inverse_power(up) * (1.0f / kTableGain);
  if (p.stage == Stage::filter) {
    const Values& v = *shared_values;
    const float constant = p.whole_mask ? mask_constant(v) : 0.0f, factor = Op::kEnergy ? down : 1.0f;
#pragma unroll
    for (int i = 0; i < kTasks; ++i)
#pragma unroll
      for (int t = 0; t < 8 * kSlab; ++t) {
        const int r = t / 8, e = t / 4 % 2, at = t % 4, parity = task(i) / tiles, tile = task(i) % tiles;
        if (parity > 1) continue;
        const int column = column_of(tile, r, e, at);
        const int k = parity * 16 * Shape::kMostTiles + (kColumns ? row_of(tile, r, at) : column);
        float m = along[0][k];
        if (p.whole_mask) {
          m = fmaf(m, across[0][column], constant);
          if (v.reverse) m = fmaf(along[1][k], across[1][column], m);
        }
        float& u = strip[i].at[r][e][at];
        u = op.apply(u * factor, m, energy);
      }
    if constexpr (Op::kEnergy) down = 1.0f;
    if constexpr (Op::kEnergy) {
      const float sum = warp_sum(energy);
      if (lane == 0) energies[warp] = sum;
    }
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < kTasks; ++i) most = fmaxf(most, strip[i].largest());
    most = warp_largest(most);
    if (lane == 0) largest_mid[warp] = most;
    __syncthreads();  // the first product has been taken
    if constexpr (Op::kEnergy) {
      if (thread == 0) a.plane_loss[static_cast<int64_t>(plane) * p.slabs + blockIdx.x % p.slabs] = block_sum(energies);
    }
    if (!op.backward()) return;
    const float up_mid = power(block_largest(largest_mid));
#pragma unroll
    for (int i = 0; i < kTasks; ++i) {
      const int parity = task(i) / tiles, tile = task(i) % tiles;
      if (parity > 1 || tile >= cut) continue;
#pragma unroll
      for (int t = 0; t < 4 * kSlab; ++t) {
        const int r = t / 4, e = t / 2 % 2, at = t % 2 * 2;
        half(parity).put(row_of(tile, r, at), column_of(tile, r, e, at), strip[i].at[r][e][at] * up_mid,
                         strip[i].at[r][e][at + 1] * up_mid);
      }
    }
    __syncthreads();
    product(true, tiles, cut);
    down *= inverse_power(up_mid) * (1.0f / kTableGain);
  }

  // Through shared memory once more, as float32, so that a thread has whole groups of four.
  __syncthreads();
  float* result = reinterpret_cast<float*>(words);
#pragma unroll
  for (int i = 0; i < kTasks; ++i) {
    const int parity = task(i) / tiles, tile = task(i) % tiles;
    if (parity > 1) continue;
#pragma unroll
    for (int t = 0; t < 4 * kSlab; ++t) {
      const int r = t / 4, e = t / 2 % 2, at = t % 2 * 2;
      *reinterpret_cast<float2*>(result + (parity * rows + row_of(tile, r, at)) * stride + column_of(tile, r, e, at)) =
          make_float2(strip[i].at[r][e][at] * down, strip[i].at[r][e][at + 1] * down);
    }
  }
  __syncthreads();
  const Values& v = *shared_values;
  const Image scratch = scratch_image(p.to, p);
#pragma unroll 1
  for (int index = thread; index < rows * groups; index += kLineThreads) {
    const int row = index / groups, column = index % groups * 4;
    LineCell cell;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const float4 four = *reinterpret_cast<const float4*>(result + (q * rows + row) * stride + column);
      cell.parity[q][0] = four.x, cell.parity[q][1] = four.y, cell.parity[q][2] = four.z, cell.parity[q][3] = four.w;
    }
    spread<kColumns>(s, spectrum_out, row, column, cell, [&](int y, int x, int first, int last, float(&value)[4]) {
      if (p.last) {
        op.finish(v, b, c, y, x, first, last, value);
      } else {
        write(Plane(scratch, local, 0), y, x, first, last, value);
      }
    });
  }
}

}  // namespace softdiff::cuda
