// SPDX-License-Identifier: Apache-2.0
// A block of plane.h: its threads, its shared memory, and what each of its warps works on.
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
  static constexpr int kGroups = 4 * kTiles;       // of four columns
  static constexpr int kMostThreads = kTiles == 2 ? 256 : 512;
  static int threads(int tiles_h) { return 128 * ((tiles_h + kRows - 1) / kRows); }
  static size_t shared(int tiles_h) {
    return gains_room(kPlaneSide, 32 * kTiles) + room<Values>(1) + 3 * room<float>(16) +
           room<uint32_t>(4 * 16 * tiles_h * kStride);
  }
};

// A block's shared memory.
template <int kTiles>
struct PlaneMemory {
  static constexpr int kStride = PlaneShape<kTiles>::kStride;
  Gains gains;
  Values* values;
  float* largest_in;  // of each warp, in the folded plane
  float* largest_mid;  // ... between the products along the columns
  float* energies;
  uint32_t* words;
  const Table& rows;  // in the kernel's arguments, where it costs no registers

  SOFTDIFF_DEVICE PlaneMemory(Arena& arena, const PlaneTables& tables)
      : gains(arena, kPlaneSide, 32 * kTiles, kPlaneSide / 2, 16 * kTiles), rows(tables.h) {
    values = arena.take<Values>(1);
    largest_in = arena.take<float>(16);
    largest_mid = arena.take<float>(16);
    energies = arena.take<float>(16);
    words = arena.take<uint32_t>(area());
  }
  SOFTDIFF_DEVICE int height() const { return 16 * rows.tiles; }  // of a quadrant
  SOFTDIFF_DEVICE int area() const { return 4 * height() * kStride; }
  SOFTDIFF_DEVICE Tile quadrant(int q) const {
    uint16_t* high = reinterpret_cast<uint16_t*>(words) + q * height() * kStride;
    return Tile{high, high + area(), kStride};
  }
  SOFTDIFF_DEVICE float scale_in() const { return power(block_largest(largest_in)); }
};

// What a warp works on. Formed again where it is used, from numbers that cost nothing to keep.
template <int kTiles>
struct PlaneRole {
  int warp, lane, quadrant, parity_h, parity_w;
  int first;  // tile of rows
  SOFTDIFF_DEVICE explicit PlaneRole(int tiles_h) {
    constexpr int kRows = PlaneShape<kTiles>::kRows;
    const int thread = here(static_cast<int>(threadIdx.x)), strips = (tiles_h + kRows - 1) / kRows;
    warp = thread / 32, lane = thread % 32;
    quadrant = warp / strips, parity_h = quadrant >> 1, parity_w = quadrant & 1;
    first = warp % strips * kRows;
  }
  // Row and column in the quadrant of number i of accumulator (r, n).
  SOFTDIFF_DEVICE int row(int r, int i) const { return 16 * (first + r) + lane / 4 + i / 2 * 8; }
  SOFTDIFF_DEVICE int column(int n, int i) const { return 8 * n + lane % 4 * 2 + i % 2; }
};

}  // namespace softdiff::cuda
