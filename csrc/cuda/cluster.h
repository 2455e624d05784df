// SPDX-License-Identifier: Apache-2.0
// Two blocks of a cluster, one plane of 129 to 256 px on its longer side, one pass over global memory. Each block owns
// the rows of one parity, so that all products stay inside it; what crosses are the folded rows on load and the
// results before they are unfolded, through distributed shared memory. For GPUs that have clusters (sm_90 on) and
// room for the plane; lines.h does it for the others.
//
// A warp owns a strip of 32 rows. Unlike in plane.h a strip is too long for registers to hold it as an operand: it
// goes through its own rows of shared memory, which no other warp reads meanwhile.
#pragma once

#include "cluster_load.h"
#include "masks.h"

namespace softdiff::cuda {

// A strip into its rows of its quadrant.
template <class S>
SOFTDIFF_DEVICE void put_strip(const Tile& own, const ClusterRole& role, int tiles_h, float factor, const S& strip) {
#pragma unroll
  for (int r = 0; r < ClusterShape::kRows; ++r) {
    if (role.first + r >= tiles_h) continue;
#pragma unroll
    for (int n = 0; n < 2 * ClusterShape::kTiles; ++n) {
      if (8 * n >= own.stride - 8) continue;
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        own.put(role.row(r, i), role.column(n, i), strip.at[r][n][i] * factor, strip.at[r][n][i + 1] * factor);
      }
    }
  }
}

// The results, times `down`, as float32: [parity of columns, row, column] in this block for a spectrum, whose rows it
// writes itself; else to the block that writes their pixels, [parity of rows, of columns, row, column].
template <bool kSpectrum, class S>
SOFTDIFF_DEVICE void hand_over(const ClusterMemory& m, const ClusterRole& role, float down, const S& strip) {
  const int stride = m.stride(), height = kSpectrum ? m.height() : m.half();
#pragma unroll
  for (int r = 0; r < ClusterShape::kRows; ++r) {
    if (role.first + r >= m.tables.h.tiles) continue;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const int row = role.row(r, i), block = row < height ? 0 : 1;
      const int quadrant = kSpectrum ? role.parity_w : 2 * m.rank + role.parity_w;
      uint32_t* words = kSpectrum ? m.words : in_block(m.words, block);
      float* to = reinterpret_cast<float*>(words) + (quadrant * height + row - block * height) * stride;
#pragma unroll
      for (int n = 0; n < 2 * ClusterShape::kTiles; ++n) {
        if (8 * n >= stride - 8) continue;
        *reinterpret_cast<float2*>(to + role.column(n, i)) = make_float2(strip.at[r][n][i] * down, strip.at[r][n][i + 1] * down);
      }
    }
  }
}

// Once all have handed over: a thread has whole groups of four pixels.
template <class Op>
SOFTDIFF_DEVICE void finish_cluster(const Op& op, const Sizes& s, const ClusterMemory& m) {
  const float* result = reinterpret_cast<const float*>(m.words);
  const Values& v = *m.values;
  const int channels = static_cast<int>(op.a.shape.c), plane = here(static_cast<int>(blockIdx.x)) >> 1;
  const int b = plane / channels, c = plane % channels, groups = m.groups(), stride = m.stride();
  constexpr bool kSpectrum = Op::kShift == Shift::forward;
  const auto finish = [&](int y, int x, int from, int to, float(&value)[4]) { op.finish(v, b, c, y, x, from, to, value); };
#pragma unroll 1
  for (int index = threadIdx.x; index < (kSpectrum ? m.height() : m.half()) * groups; index += blockDim.x) {
    const int row = index / groups, column = index % groups * 4;
    if constexpr (kSpectrum) {
      LineCell cell;
#pragma unroll
      for (int q = 0; q < 2; ++q) four(result + (q * m.height() + row) * stride + column, cell.parity[q]);
      spread<false>(Slab{s.h, s.w, 0, s.h}, true, 2 * row + m.rank, column, cell, finish);
    } else {
      Cell cell;
#pragma unroll
      for (int q = 0; q < 4; ++q) four(result + (q * m.half() + row) * stride + column, cell.quadrant[q >> 1][q & 1]);
      unfold(s, m.rank * m.half() + row, column, cell, finish);
    }
  }
}

template <class Op>
SOFTDIFF_DEVICE void cluster_plane(const typename Op::Args& a, const PlaneTables& tables) {
  constexpr int kRows = ClusterShape::kRows, kTiles = ClusterShape::kTiles;
  constexpr bool kInverse = Op::kShift == Shift::inverse, kMasked = Op::kShift == Shift::filter;
  const Op op{a};
  const Sizes s(static_cast<int>(a.shape.h), static_cast<int>(a.shape.w));
  const int channels = static_cast<int>(a.shape.c), plane = blockIdx.x >> 1, b = plane / channels, c = plane % channels;
  const int tiles_h = tables.h.tiles, tiles_w = tables.w.tiles;
  Arena arena;
  const ClusterMemory m(arena, tables, blockIdx.x & 1);
  if (threadIdx.x == 0) {
    Values v = op.values(b);
    v.kept_h = tiles_of(kept(v, s.h)), v.kept_w = tiles_of(kept(v, s.w));
    *m.values = v;
  }
  if constexpr (kInverse) {
    load_spectrum(op, s, b, c, m);
  } else {
    cluster_arrive();
    load_folded(op, s, b, c, m);
  }
  split_loaded<kMasked, !Op::kEnergy>(s, m);
  const auto cut = [&](int all, int kept) { return kMasked ? kept : all; };
  const auto rows_kept = [&](const ClusterRole& role) { return role.first < cut(tiles_h, m.values->kept_h); };
  Strip<kRows, kTiles> strip;
  strip.clear();
  // `strip` is kTableGain times the scaled plane's columns, transformed.
  if (const ClusterRole role(m); rows_kept(role)) {
    times_shared<kRows, kTiles, true>(tables.h, kInverse, m.rank, role.first, tiles_h, m.quadrant(m.words, role.parity_w),
                                      tiles_w, tiles_h, strip);
  }
  __syncthreads();  // the columns have been taken
  // ... then as much of its spectrum; for the inverse alone, its quadrant.
  if (const ClusterRole role(m); rows_kept(role)) {
    const Tile own = m.quadrant(m.words, role.parity_w);
    put_strip(own, role, tiles_h, 1.0f / kTableGain, strip);
    __syncwarp();
    rows_transposed<kRows, kTiles>(own, role.first, tiles_h, tables.w, kInverse, role.parity_w, cut(tiles_w, m.values->kept_w),
                                   tiles_w, strip);
  }
  if constexpr (kMasked) {
    {
      const ClusterRole role(m);
      if constexpr (Op::kEnergy) {
        // Rows beyond the last tile repeat it, and count for nothing.
        if (role.first + 1 >= tiles_h) strip.clear_from(1);
      }
      // Energies are taken of the scaled plane's spectrum itself.
      const float factor = Op::kEnergy ? 1.0f / kTableGain : 1.0f;
      const float energy = mask_strip<!Op::kEnergy>(op, m, role, factor, strip);
      if constexpr (Op::kEnergy) {
        const float sum = warp_sum(energy);
        if (role.lane == 0) m.energies[role.warp] = sum;
      }
    }
    if (op.backward()) {
      // A strip's masked spectrum, then all of what it gives, are scaled again: a mask may leave little.
      const ClusterRole role(m);
      const float up = power(warp_largest(strip.largest()));
      if (rows_kept(role)) {
        const Tile own = m.quadrant(m.words, role.parity_w);
        put_strip(own, role, tiles_h, up, strip);
        __syncwarp();
        rows_transposed<kRows, kTiles>(own, role.first, tiles_h, tables.w, true, role.parity_w, tiles_w,
                                       cut(tiles_w, m.values->kept_w), strip);
      }
      strip.scale(inverse_power(up) * (1.0f / kTableGain));
      const float most = warp_largest(strip.largest());
      if (role.lane == 0) m.largest_mid[role.warp] = most;
    }
    __syncthreads();
    if constexpr (Op::kEnergy) {
      if (threadIdx.x == 0) {
        const double scale = inverse_power(m.scale_in());
        a.plane_loss[blockIdx.x] = block_sum(m.energies) * scale * scale;
      }
    }
    if (!op.backward()) return;
    if (const ClusterRole role(m); rows_kept(role)) {
      put_strip(m.quadrant(m.words, role.parity_w), role, tiles_h, power(block_largest(m.largest_mid)), strip);
    }
    __syncthreads();
    const ClusterRole role(m);
    times_shared<kRows, kTiles, true>(tables.h, true, m.rank, role.first, tiles_h, m.quadrant(m.words, role.parity_w), tiles_w,
                                      cut(tiles_h, m.values->kept_h), strip);
  }
  const ClusterRole role(m);
  float down = inverse_power(m.scale_in());
  if constexpr (!Op::kEnergy) down *= 1.0f / kTableGain;
  if constexpr (kMasked) down *= inverse_power(power(block_largest(m.largest_mid))) * (1.0f / kTableGain);
  if constexpr (Op::kShift == Shift::forward) {
    __syncthreads();
    hand_over<true>(m, role, down, strip);
    __syncthreads();
  } else {
    cluster_arrive();
    cluster_wait();  // neither block's words are wanted any more
    hand_over<false>(m, role, down, strip);
    cluster_arrive();
    cluster_wait();  // nothing is read or written in the other block from here on: either may end
  }
  finish_cluster(op, s, m);
}

template <class Op>
__global__ void __launch_bounds__(ClusterShape::kMostThreads, 1)
    cluster_kernel(const __grid_constant__ typename Op::Args a, const __grid_constant__ PlaneTables tables) {
#if defined(SOFTDIFF_CUDA_SHIM) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
  cluster_plane<Op>(a, tables);
#endif
}

}  // namespace softdiff::cuda
