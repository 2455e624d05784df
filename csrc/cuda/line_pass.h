// SPDX-License-Identifier: Apache-2.0
// What a pass of lines.h is told, the memory that it takes, and what it reads where a mix begins.
#pragma once

#include "line_cells.h"
#include "ops.h"
#include "products.h"

namespace softdiff::cuda {

constexpr int kLineThreads = 512;
constexpr int kLineWarps = kLineThreads / 32;
constexpr int kLineTiles = 32;  // of 16 frequencies of a parity, at most
constexpr int kLongestLine = 32 * kLineTiles;

enum class Stage : int { forward, inverse, filter };

struct LineParameters {
  Stage stage = Stage::forward;
  bool whole_mask = false;  // filter: by the mask over both axes, else by the gain along this one
  bool mix = false;         // inverse: of all inputs' spectra, masked
  bool last = false;        // finish, and write what the op writes
  int first_plane = 0, slabs = 0;
  Table table;
  float* from = nullptr;  // scratch, or absent: the op's source
  float* to = nullptr;
  int64_t row = 0, plane = 0, inputs = 0;  // strides of scratch, the last from one input's planes to the next's
  int input = 0;                           // the source, where there are several
};

// For slabs of 16 kSlab lines. kSlab times the tiles that a warp has is 4: 64 lines up to 256 px, 16 up to 1024.
template <bool kColumns, int kSlab>
struct LineShape {
  static constexpr int kTasks = 4 / kSlab, kLines = 16 * kSlab, kCells = 4;
  static constexpr int kMostTiles = kLineTiles / kSlab;
  SOFTDIFF_HD static int rows(int tiles) { return kColumns ? 16 * tiles : kLines; }
  SOFTDIFF_HD static int stride(int tiles) { return kColumns ? kLines + (kSlab > 1 ? 8 : 0) : 16 * tiles + 8; }
  static size_t shared(int tiles) {
    return 2 * room<float>(32 * kMostTiles) + 2 * room<float>(kLines) + room<Values>(1) + 3 * room<float>(kLineWarps) +
           room<uint32_t>(2 * rows(tiles) * stride(tiles));
  }
};

SOFTDIFF_DEVICE Image scratch_image(float* data, const LineParameters& p) {
  Image image;
  image.data = data;
  image.dtype = DType::float32;
  image.stride[0] = p.plane, image.stride[1] = 0, image.stride[2] = p.row, image.stride[3] = 1;
  return image;
}

// The sum of all inputs' masked spectra, and of masked noise.
template <class Op>
SOFTDIFF_DEVICE void mix_cell(const Op& op, const LineParameters& p, const Slab& s, int local, int b, int c, int row,
                              int column, LineCell& cell) {
  const int x = s.first + column, last = min(max(s.w - x, 0), 4);
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    const int k = 2 * row + q;
    float(&sum)[4] = cell.parity[q];
    sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
    if (k >= s.h || last == 0) continue;
    const auto add = [&](const Image& mask, const float(&v)[4]) {
      float m[4];
      read(Plane(mask, b, c), k, x, 0, last, m);
#pragma unroll
      for (int t = 0; t < 4; ++t) sum[t] = fmaf(m[t], v[t], sum[t]);
    };
    float v[4];
#pragma unroll 1
    for (int input = 0; input < op.a.count; ++input) {
      const Image image = scratch_image(p.from + input * p.inputs, p);
      read(Plane(image, local, 0), k, x, 0, last, v);
      add(op.a.mask[input], v);
    }
    if (!op.noisy()) continue;
    normals_at(key_of(op.a.key, b), element(op.a.shape, c, k, x), v);
    add(op.a.noise_mask, v);
  }
}

}  // namespace softdiff::cuda
