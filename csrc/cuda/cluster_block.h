// SPDX-License-Identifier: Apache-2.0
// A block of cluster.h: its shared memory, its peer's, and what each of its warps works on.
#pragma once

#include "ops.h"
#include "plane_block.h"
#include "products.h"

namespace softdiff::cuda {

constexpr int kClusterSide = 256;

struct ClusterShape {
  static constexpr int kRows = 2, kTiles = 8;  // strips of 32 rows share the matrices' fragments
  static constexpr int kMostThreads = 256, kMostWarps = 8;
  static int threads(int tiles_h) { return 64 * ((tiles_h + kRows - 1) / kRows); }
};

// Block p of two owns the rows of parity p: two quadrants, one for each parity of the columns. Of the plane's rows
// (a row of the quadrants and its mirror) it reads and writes one half, `half` rows from rank * half.
struct ClusterMemory {
  Gains gains;
  Values* values;
  float* largest_in;  // in the folded plane's rows of each parity, of the warps of block 0 and of block 1
  float* largest_mid;
  float* energies;
  uint32_t* words;
  int rank;
  const PlaneTables& tables;  // in the kernel's arguments, where it costs no registers

  SOFTDIFF_DEVICE ClusterMemory(Arena& arena, const PlaneTables& tables_, int rank_)
      : gains(arena, kClusterSide, kClusterSide, kClusterSide / 2, kClusterSide / 2), rank(rank_), tables(tables_) {
    values = arena.take<Values>(1);
    largest_in = arena.take<float>(4 * ClusterShape::kMostWarps);
    largest_mid = arena.take<float>(ClusterShape::kMostWarps);
    energies = arena.take<float>(ClusterShape::kMostWarps);
    words = arena.take<uint32_t>(area());
  }
  SOFTDIFF_DEVICE int height() const { return 16 * tables.h.tiles; }  // of a quadrant
  SOFTDIFF_DEVICE int half() const { return 8 * tables.h.tiles; }
  SOFTDIFF_DEVICE int groups() const { return 4 * tables.w.tiles; }  // of four columns
  SOFTDIFF_DEVICE int stride() const { return cluster_stride(tables.w.tiles); }
  SOFTDIFF_DEVICE int area() const { return 2 * height() * stride(); }
  // A quadrant of the block whose words these are.
  SOFTDIFF_DEVICE Tile quadrant(uint32_t* of_block, int parity_w) const {
    uint16_t* high = reinterpret_cast<uint16_t*>(of_block) + parity_w * height() * stride();
    return Tile{high, high + area(), stride()};
  }
  SOFTDIFF_DEVICE float* largest_of(int parity, int block) const {
    return largest_in + (2 * parity + block) * ClusterShape::kMostWarps;
  }
  SOFTDIFF_DEVICE float scale_in() const {
    return power(fmaxf(block_largest(largest_of(rank, 0)), block_largest(largest_of(rank, 1))));
  }
};

// What a warp works on. Formed again where it is used, from numbers that cost nothing to keep.
struct ClusterRole {
  int warp, lane, parity_h, parity_w;
  int first;  // tile of rows
  SOFTDIFF_DEVICE explicit ClusterRole(const ClusterMemory& m) {
    constexpr int kRows = ClusterShape::kRows;
    const int thread = here(static_cast<int>(threadIdx.x)), strips = (m.tables.h.tiles + kRows - 1) / kRows;
    warp = thread / 32, lane = thread % 32;
    parity_h = m.rank, parity_w = warp / strips;
    first = warp % strips * kRows;
  }
  // Row and column in the quadrant of number i of accumulator (r, n).
  SOFTDIFF_DEVICE int row(int r, int i) const { return 16 * (first + r) + lane / 4 + i / 2 * 8; }
  SOFTDIFF_DEVICE int column(int n, int i) const { return 8 * n + lane % 4 * 2 + i % 2; }
};

}  // namespace softdiff::cuda
