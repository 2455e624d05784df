// SPDX-License-Identifier: Apache-2.0
// What a pass of lines.h is told, and its way between global memory and a tile in shared memory.
//
// A block takes `lines` neighbouring lines (rows or columns) of one plane, all in its shared memory.
// An item is two groups of four neighbours of a row of the plane: place i and its mirror image n - 1 - i of four columns,
// or places i to i + 3 of a row and their mirror images.
#pragma once

#include "corrupt_op.h"

namespace softdiff::cuda {

enum class Stage : int { forward, inverse, filter };

constexpr int kLineThreads = 160;  // at most
constexpr int kLongestLine = 1024;

struct LineParameters {
  Stage stage = Stage::forward;
  bool whole_mask = false;  // filter: by the mask over both axes, else by the gain along this one
  bool energy = false;      // filter: by the mask's square, with the energy of what the mask leaves
  bool backward = true;     // filter: false where the energy is all that is wanted
  bool last = false;        // finish, and write what the op writes
  bool exact = false;       // whether the op has to return its input where nothing is blurred
  float factor = 1.0f;      // of the op's scale
  Image from, less, to;     // the transform is of from - less, where there is that
  int first_plane = 0, slabs = 0, lines = 0;
  int levels = 0;                 // fast: the line is of the codelet's length times 2^levels
  double* parts = nullptr;        // where the blocks leave their energies
  const float* table = nullptr;   // dense: D and its transpose, by parity [2, 2, side, side]
  int side = 0;
  int across = 0;                 // items (fast), or groups of four (dense), side by side in a piece
  uint32_t reciprocal = 0;        // 2^32 / across, rounded up
};

// A block's place.
struct LineSpot {
  int b, c, first_line;
  SOFTDIFF_DEVICE LineSpot(const CorruptArgs& a, const LineParameters& p, int block) {
    const int channels = static_cast<int>(a.shape.c), plane = p.first_plane + block / p.slabs;
    b = plane / channels, c = plane % channels, first_line = block % p.slabs * p.lines;
  }
};

// item / across for the few thousand items of a piece.
SOFTDIFF_DEVICE int over(int item, uint32_t reciprocal) {
  return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(item)) * reciprocal >> 32);
}

// Four neighbours of the source as float32; those outside are 0.
class LineSource {
 public:
  SOFTDIFF_DEVICE LineSource(const LineParameters& p, int b, int c)
      : from_(p.from, b, c), less_(p.less, b, c), plain_(from_.vectors && p.from.dtype == DType::float32 && !p.less) {}

  SOFTDIFF_DEVICE void read4(int y, int x, int last, float (&out)[4]) const {
    if (plain_ && last == 4) {
      Float32::value(*from_.at<const float4>(y, x, 4), out);
      return;
    }
    read(from_, y, x, 0, last, out);
    if (!less_.image) return;
    float other[4];
    read(less_, y, x, 0, last, other);
#pragma unroll
    for (int e = 0; e < 4; ++e) out[e] -= other[e];
  }

 private:
  const Plane from_, less_;
  const bool plain_;
};

// The sample's values, by one thread.
SOFTDIFF_DEVICE Values line_values(const CorruptArgs& a, const LineParameters& p, int b) {
  Values v = CorruptOp{a}.values(b);
  v.scale *= p.factor;
  if (!p.exact) v.identity = 0;
  return v;
}

// Of the orthonormal DCT-II, whose square a filter takes.
SOFTDIFF_DEVICE float line_norm(int k, int n, bool square) {
  const float s = (k == 0 ? 1.0f : 2.0f) / static_cast<float>(n);
  return square ? s : sqrtf(s);
}

}  // namespace softdiff::cuda
