// SPDX-License-Identifier: Apache-2.0
// A plane's elements in runs, as the noise stream counts them.
#pragma once

#include "noise.h"
#include "plane.h"

namespace softdiff::SOFTDIFF_ISA {

// Walks a plane in runs of at most kChunk elements that are neighbours in element order: several whole
// rows, or a part of one. `begin(first, count)` sees each run, `row(i, j, n, at)` each row's part of it.
template <class Begin, class Row>
SD_INLINE void walk(const Plane& p, Begin begin, Row row) {
  const int64_t group = p.w < kChunk ? kChunk / p.w : 1;
  for (int64_t i = 0; i < p.h; i += group) {
    const int64_t rows = p.h - i < group ? p.h - i : group;
    for (int64_t j = 0; j < p.w; j += kChunk) {
      const int64_t n = p.w - j < kChunk ? p.w - j : kChunk;
      begin(i * p.w + j, rows == 1 ? n : rows * p.w);
      for (int64_t r = 0; r < rows; ++r) row(i + r, j, n, r * p.w);
    }
  }
}

// Noise for a run of elements into p.noise; returns where its first element lies.
SD_INLINE const float* draw(const Plane& p, const Stream& stream, int64_t first, int64_t count) {
  const int64_t lead = first & 3;
  fill_normals(stream, static_cast<uint64_t>(first >> 2), (lead + count + 3) >> 2, p.noise);
  return p.noise + lead;
}

}  // namespace softdiff::SOFTDIFF_ISA
