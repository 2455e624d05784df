// SPDX-License-Identifier: Apache-2.0
// What a block of cluster.h reads, into the two quadrants that it owns. Folded pixels make rows of both parities, so
// half of them go to the peer.
#pragma once

#include "cluster_block.h"
#include "line_cells.h"

namespace softdiff::cuda {

SOFTDIFF_DEVICE void four(const float* from, float (&to)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

SOFTDIFF_DEVICE float larger(float most, const float (&v)[4]) {
#pragma unroll
  for (int t = 0; t < 4; ++t) most = fmaxf(most, fabsf(v[t]));
  return most;
}

// This block's half of the folded plane as float32 to the blocks that own its rows: [parity of columns, row, column].
template <class Op>
SOFTDIFF_DEVICE void load_folded(const Op& op, const Sizes& s, int b, int c, const ClusterMemory& m) {
  constexpr int kAtOnce = Op::kSources == 2 ? 2 : 4;  // cells of a thread whose loads are in flight together
  const int cells = m.half() * m.groups();
  float most[2] = {0.0f, 0.0f};
  cluster_wait();  // the peer has begun, so that its shared memory is there
  float* to_block[2] = {reinterpret_cast<float*>(in_block(m.words, 0)), reinterpret_cast<float*>(in_block(m.words, 1))};
#pragma unroll 1
  for (int start = threadIdx.x; start < cells; start += kAtOnce * blockDim.x) {
    Cell cell[kAtOnce];
    const auto row_of = [&](int n) { return (start + n * static_cast<int>(blockDim.x)) / m.groups(); };
    const auto column_of = [&](int n) { return (start + n * static_cast<int>(blockDim.x)) % m.groups() * 4; };
    const auto read = [&](const Plane& plane, Cell(&to)[kAtOnce]) {
      with_pixels(plane, [&](auto type) {
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          // Beyond the half is a row that is not there.
          const int i = row_of(n) < m.half() ? m.rank * m.half() + row_of(n) : s.even_h;
          read_mirrored<decltype(type)>(plane, s, i, column_of(n), to[n]);
        }
      });
    };
    read(Plane(op.source(0, 0), b, c), cell);
    if constexpr (Op::kSources == 2) {
      Cell other[kAtOnce];
      read(Plane(op.source(0, 1), b, c), other);
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n)
#pragma unroll
        for (int t = 0; t < 16; ++t) cell[n].quadrant[t / 8][t / 4 % 2][t % 4] -= other[n].quadrant[t / 8][t / 4 % 2][t % 4];
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      fold(cell[n]);
      if (row_of(n) >= m.half()) continue;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float(&v)[4] = cell[n].quadrant[q >> 1][q & 1];
        most[q >> 1] = larger(most[q >> 1], v);
        float* to = to_block[q >> 1] + ((q & 1) * m.height() + m.rank * m.half() + row_of(n)) * m.stride() + column_of(n);
        *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
      }
    }
  }
#pragma unroll
  for (int parity = 0; parity < 2; ++parity) {
    const float largest = warp_largest(most[parity]);
    // A block needs those of its own parity.
    if (threadIdx.x % 32 == 0) in_block(m.largest_of(parity, m.rank), parity)[threadIdx.x / 32] = largest;
  }
  cluster_arrive();
  cluster_wait();  // also: the values are there
}

// The same of a spectrum's rows of this block's parity: the peer has no part in them.
template <class Op>
SOFTDIFF_DEVICE void load_spectrum(const Op& op, const Sizes& s, int b, int c, const ClusterMemory& m) {
  constexpr int kAtOnce = 8;
  const int cells = m.height() * m.groups();
  const Plane plane(op.source(0, 0), b, c);
  float most = 0.0f;
#pragma unroll 1
  for (int start = threadIdx.x; start < cells; start += kAtOnce * blockDim.x) {
    LineCell cell[kAtOnce];
    const auto row_of = [&](int n) { return (start + n * static_cast<int>(blockDim.x)) / m.groups(); };
    const auto column_of = [&](int n) { return (start + n * static_cast<int>(blockDim.x)) % m.groups() * 4; };
    with_pixels(plane, [&](auto type) {
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        read_line_cell<false, decltype(type)>(plane, Slab{s.h, s.w, 0, s.h}, true, 2 * row_of(n) + m.rank, column_of(n), cell[n]);
      }
    });
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (row_of(n) >= m.height()) continue;
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const float(&v)[4] = cell[n].parity[q];
        most = larger(most, v);
        float* to = reinterpret_cast<float*>(m.words) + (q * m.height() + row_of(n)) * m.stride() + column_of(n);
        *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
      }
    }
  }
  most = warp_largest(most);
  if (threadIdx.x % 32 == 0) {
    m.largest_of(m.rank, 0)[threadIdx.x / 32] = most;
    m.largest_of(m.rank, 1)[threadIdx.x / 32] = 0.0f;
  }
  __syncthreads();  // also: the values are there
}

// What was loaded, scaled to [16, 32), in float16 parts; and the gains.
template <bool kGains, bool kTwoTerms>
SOFTDIFF_DEVICE void split_loaded(const Sizes& s, const ClusterMemory& m) {
  constexpr int kAll = 4 * ClusterShape::kTiles;  // groups of four of a thread: all of them, since parts overlap others'
  const int thread = threadIdx.x, threads = blockDim.x;
  const auto row_of = [&](int n) { return (thread + n * threads) / m.groups(); };
  const auto column_of = [&](int n) { return (thread + n * threads) % m.groups() * 4; };
  float v[kAll][4];
#pragma unroll
  for (int n = 0; n < kAll; ++n) {
    if (row_of(n) < 2 * m.height()) four(reinterpret_cast<const float*>(m.words) + row_of(n) * m.stride() + column_of(n), v[n]);
  }
  const float up = m.scale_in();
  if constexpr (kGains) {
    const Gains& g = m.gains;
    fill_axis(*m.values, g.h[0], g.h[1], s.h, 0, 2 * g.half_h, g.half_h, true, thread, threads);
    fill_axis(*m.values, g.w[0], g.w[1], s.w, 0, 2 * g.half_w, g.half_w, false, thread, threads);
    // The mask has two terms for every sample: a second copy of mask_strip would cost registers.
    if (kTwoTerms && !m.values->reverse) {
      for (int i = thread; i < 2 * g.half_h; i += threads) g.h[1][i] = 0.0f, g.w[1][i] = 0.0f;
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kAll; ++n) {
    if (row_of(n) < 2 * m.height()) m.quadrant(m.words, 0).put(row_of(n), column_of(n), v[n], up);
  }
  __syncthreads();
}

}  // namespace softdiff::cuda
