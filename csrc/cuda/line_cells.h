// SPDX-License-Identifier: Apache-2.0
// cells.h for one axis: a slab of lines, along the rows of a plane or along its columns, split by parity. A cell is
// four neighbours of a row of the plane in each parity: along rows, four places of a line; along columns, the same
// place of four lines.
#pragma once

#include "cells.h"

namespace softdiff::cuda {

struct LineCell {
  float parity[2][4];
};

struct Slab {
  int h, w;   // of the plane
  int first;  // line
  int lines;  // room for them; the last slab's may end before
};

template <bool kColumns, class T>
SOFTDIFF_DEVICE void read_line_cell(const Plane& plane, const Slab& s, bool spectrum, int row, int column, LineCell& cell) {
  if constexpr (kColumns) {
    Span span(s.w, 0, 0);
    span.x = s.first + column;
    span.last = min(max(s.w - span.x, 0), 4);
    const int even = (s.h + 1) / 2;
    const int upper = spectrum ? 2 * row : row, lower = spectrum ? 2 * row + 1 : s.h - 1 - row;
    read_span<T>(plane, upper, row < even, span, false, cell.parity[0]);
    read_span<T>(plane, lower, row < even && lower != upper && lower < s.h, span, false, cell.parity[1]);
  } else {
    const int y = s.first + row;
    const bool there = row < s.lines && y < s.h;
    if (spectrum) {
      read_pairs<T>(plane, y, there, s.w, column, cell.parity[0], cell.parity[1]);
    } else {
#pragma unroll
      for (int q = 0; q < 2; ++q) read_span<T>(plane, y, there, Span(s.w, column, q), q == 1, cell.parity[q]);
    }
  }
}

SOFTDIFF_DEVICE void fold(LineCell& cell) {
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const float a = cell.parity[0][t], b = cell.parity[1][t];
    cell.parity[0][t] = a + b;
    cell.parity[1][t] = a - b;
  }
}

// Calls finish(y, x, first, last, value) for the elements that a cell makes.
template <bool kColumns, class Finish>
SOFTDIFF_DEVICE void spread(const Slab& s, bool spectrum, int row, int column, const LineCell& cell, Finish finish) {
#pragma unroll 1
  for (int q = 0; q < 2; ++q) {
    const float sign = q == 0 ? 1.0f : -1.0f;
    float v[4];
    Span span(s.w, kColumns ? 0 : column, q);
    int y = s.first + row;
    if constexpr (kColumns) {
      span.x = s.first + column, span.first = 0;
      span.last = min(s.w - span.x, 4);
      y = spectrum ? 2 * row + q : q == 0 ? row : s.h - 1 - row;
      if (row >= (s.h + 1) / 2 || y >= s.h || (q == 1 && !spectrum && y == row)) continue;
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const float own = q == 0 ? cell.parity[0][t] : cell.parity[1][t];
        v[t] = spectrum ? own : fmaf(sign, cell.parity[1][t], cell.parity[0][t]);
      }
    } else if (spectrum) {
      span.x = 2 * column + 4 * q, span.first = 0;
      span.last = min(s.w - span.x, 4);
#pragma unroll
      for (int t = 0; t < 4; ++t) v[t] = q == 0 ? cell.parity[t & 1][t / 2] : cell.parity[t & 1][2 + t / 2];
    } else {
      float one[4];
#pragma unroll
      for (int t = 0; t < 4; ++t) one[t] = fmaf(sign, cell.parity[1][t], cell.parity[0][t]);
#pragma unroll
      for (int t = 0; t < 4; ++t) v[t] = q == 0 ? one[t] : one[3 - t];
    }
    if (y < s.h && span.first < span.last) finish(y, span.x, span.first, span.last, v);
  }
}

}  // namespace softdiff::cuda
