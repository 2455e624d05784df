// SPDX-License-Identifier: Apache-2.0
// Between images and the four quadrants of a plane. An even/odd butterfly along each axis splits the transform
// into four of half the side: quadrant (a, b) holds the rows of parity a and the columns of parity b.
//
// A cell is four neighbours of one row in each quadrant: quadrant[a][b][t].
#pragma once

#include "pixels.h"

namespace softdiff::cuda {

struct Sizes {
  int h, w;            // of the plane
  int even_h, even_w;  // of the even part; the odd one is smaller by one where the size is odd
  SOFTDIFF_DEVICE Sizes(int h_, int w_) : h(h_), w(w_), even_h((h_ + 1) / 2), even_w((w_ + 1) / 2) {}
};

struct Cell {
  float quadrant[2][2][4];
};

// Where the pixels of one row lie that four columns from j of the parities are made of: elements x + first to
// x + last - 1 on the left (q = 0), or mirrored on the right, where a middle column is left out.
struct Span {
  int x, first, last;
  SOFTDIFF_DEVICE Span(int w, int j, int q) {
    const int valid = min(max((w + 1) / 2 - j, 0), 4);
    const int once = 2 * (j + valid) > w ? 1 : 0;
    x = q == 0 ? j : w - 4 - j;
    first = q == 0 ? 0 : 4 - valid + once;
    last = q == 0 ? valid : 4;
  }
};

// The elements of a span, or zeros; those on the right in mirrored order.
template <class T>
SOFTDIFF_DEVICE void read_span(const Plane& plane, int y, bool there, const Span& span, bool turn, float (&out)[4]) {
  float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (there && whole(plane, span.x, span.first, span.last)) {
    T::value(*plane.template at<const typename T::Raw>(y, span.x, T::kSize), v);
  } else if (there) {
    read_as<T>(plane, y, span.x, span.first, span.last, v);
  }
#pragma unroll
  for (int t = 0; t < 4; ++t) out[t] = v[turn ? 3 - t : t];
}

// The pixels that row i, columns j to j + 3 of the quadrants are made from: side (p, q) is the upper or lower
// row, the left or right columns. A middle row counts once, too.
template <class T>
SOFTDIFF_DEVICE void read_mirrored(const Plane& plane, const Sizes& s, int i, int j, Cell& cell) {
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    const int y = p == 0 ? i : s.h - 1 - i;
    const bool there = i < s.even_h && (p == 0 || y != i);
#pragma unroll
    for (int q = 0; q < 2; ++q) read_span<T>(plane, y, there, Span(s.w, j, q), q == 1, cell.quadrant[p][q]);
  }
}

// Sums and differences of the mirrored pixels.
SOFTDIFF_DEVICE void fold(Cell& cell) {
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const float a = cell.quadrant[0][0][t], b = cell.quadrant[0][1][t];
    const float c = cell.quadrant[1][0][t], d = cell.quadrant[1][1][t];
    cell.quadrant[0][0][t] = (a + b) + (c + d);
    cell.quadrant[0][1][t] = (a - b) + (c - d);
    cell.quadrant[1][0][t] = (a + b) - (c + d);
    cell.quadrant[1][1][t] = (a - b) - (c - d);
  }
}

// Eight neighbours of a row as four of each parity.
template <class T>
SOFTDIFF_DEVICE void read_pairs(const Plane& plane, int y, bool there, int w, int j, float (&even)[4], float (&odd)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Span span(w, 0, 0);
    span.x = 2 * j + 4 * half;
    span.last = min(max(w - span.x, 0), 4);
    float v[4];
    read_span<T>(plane, y, there, span, false, v);
#pragma unroll
    for (int t = 0; t < 2; ++t) even[2 * half + t] = v[2 * t], odd[2 * half + t] = v[2 * t + 1];
  }
}

// A spectrum's rows and columns by parity: row 2 i + a, column 2 j + b.
template <class T>
SOFTDIFF_DEVICE void read_interleaved(const Plane& plane, const Sizes& s, int i, int j, Cell& cell) {
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    read_pairs<T>(plane, 2 * i + p, 2 * i + p < s.h, s.w, j, cell.quadrant[p][0], cell.quadrant[p][1]);
  }
}

// All cells of a thread. The dtype is chosen once around them, so that their loads are in flight together.
template <bool kSpectrum, int kCells>
SOFTDIFF_DEVICE void read_cells(const Plane& plane, const Sizes& s, int groups, Cell (&cells)[kCells]) {
  with_pixels(plane, [&](auto type) {
    using T = decltype(type);
#pragma unroll
    for (int n = 0; n < kCells; ++n) {
      const int index = threadIdx.x + n * blockDim.x;
      const int i = index / groups, j = index % groups * 4;
      if constexpr (kSpectrum) {
        read_interleaved<T>(plane, s, i, j, cells[n]);
      } else {
        read_mirrored<T>(plane, s, i, j, cells[n]);
      }
    }
  });
}

// Calls finish(y, x, first, last, value) for the pixels that the quadrants' row i, columns j to j + 3 make.
template <class Finish>
SOFTDIFF_DEVICE void unfold(const Sizes& s, int i, int j, const Cell& cell, Finish finish) {
  if (i >= s.even_h) return;
#pragma unroll 1
  for (int side = 0; side < 4; ++side) {
    const int p = side >> 1, q = side & 1;
    const int y = p == 0 ? i : s.h - 1 - i;
    const Span span(s.w, j, q);
    if ((p == 1 && y == i) || span.first >= span.last) continue;
    const float down = p == 0 ? 1.0f : -1.0f, across = q == 0 ? 1.0f : -1.0f;
    float v[4], turned[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float upper = fmaf(across, cell.quadrant[0][1][t], cell.quadrant[0][0][t]);
      const float lower = fmaf(across, cell.quadrant[1][1][t], cell.quadrant[1][0][t]);
      v[t] = fmaf(down, lower, upper);
    }
#pragma unroll
    for (int t = 0; t < 4; ++t) turned[t] = q == 0 ? v[t] : v[3 - t];
    finish(y, span.x, span.first, span.last, turned);
  }
}

// The same for a spectrum, which the quadrants' rows and columns interleave to.
template <class Finish>
SOFTDIFF_DEVICE void interleave(const Sizes& s, int i, int j, const Cell& cell, Finish finish) {
#pragma unroll 1
  for (int side = 0; side < 4; ++side) {
    const int p = side >> 1, half = side & 1;
    const int y = 2 * i + p, x = 2 * j + 4 * half;
    if (y >= s.h || x >= s.w) continue;
    float v[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float left = p == 0 ? cell.quadrant[0][t & 1][t / 2] : cell.quadrant[1][t & 1][t / 2];
      const float right = p == 0 ? cell.quadrant[0][t & 1][2 + t / 2] : cell.quadrant[1][t & 1][2 + t / 2];
      v[t] = half == 0 ? left : right;
    }
    finish(y, x, 0, min(s.w - x, 4), v);
  }
}

}  // namespace softdiff::cuda
