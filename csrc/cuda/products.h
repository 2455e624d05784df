// SPDX-License-Identifier: Apache-2.0
// Products of float32 accuracy on the tensor cores: an operand is the sum of two float16 numbers, high and low,
// which hold 22 of float32's 24 bits, and three products go into one float32 accumulator (Ootomo & Yokota 2022).
// That is half the tensor work of three TF32 products, and half their operand bytes. float16 reaches from 6e-8
// to 65504, so operands are scaled by powers of two.
//
// The tensor cores truncate what they accumulate (Fasi et al. 2021). So the two small products are summed first,
// over the whole depth, where truncation costs nothing, and the accumulator is cut at its full size once for every
// 16 of the depth: in one order for all three, 128 px were off by 1.2e-6 and 1024 by 5.4e-6, instead of 0.5e-6 and
// 1.9e-6 (blur, in tests/cuda_shim, which truncates as well). lines.h does more about it.
#pragma once

#include "plan.h"
#include "ptx.h"
#include "scales.h"

namespace softdiff::cuda {

// A transform's matrix of length n as fragments (backends/cuda/launch.py writes them): for each of D and its
// transpose, parity, tile of 16 rows and tile of 16 columns, the 32 lanes' high parts, then their low parts.
// They hold kTableGain times the matrix.
constexpr float kTableGain = 64.0f;

struct Table {
  const uint4* data;
  int tiles;  // of 16, along a side of one parity's square

  SOFTDIFF_DEVICE const uint4* fragment(bool transposed, int parity, int row, int column,
                                        int lane = threadIdx.x & 31) const {
    return data + ((((transposed ? 2 : 0) + parity) * tiles + row) * tiles + column) * 64 + lane;
  }
};

// A fragment's high or low parts; `at` names the high ones.
struct Fragment {
  uint32_t at[4];
  SOFTDIFF_DEVICE explicit Fragment(const uint4* from, bool low = false) {
    const uint4 f = __ldg(from + (low ? 32 : 0));
    at[0] = f.x, at[1] = f.y, at[2] = f.z, at[3] = f.w;
  }
  SOFTDIFF_DEVICE Fragment() {}
};

// Two floats as float16 high and low parts, the first in the low half of each word.
SOFTDIFF_DEVICE void split(float x, float y, uint32_t& high, uint32_t& low) {
  const __half2 h = __floats2half2_rn(x, y);
  const float2 back = __half22float2(h);
  const __half2 l = __floats2half2_rn(x - back.x, y - back.y);
  high = *reinterpret_cast<const uint32_t*>(&h);
  low = *reinterpret_cast<const uint32_t*>(&l);
}

// A strip of 16 kRows rows and 16 kTiles columns in accumulators.
template <int kRows, int kTiles>
struct Strip {
  float at[kRows][2 * kTiles][4];
  SOFTDIFF_DEVICE void clear() { clear_from(0); }
  SOFTDIFF_DEVICE void clear_from(int row) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (r >= row)
#pragma unroll
      for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) at[r][n][i] = 0.0f;
  }
  SOFTDIFF_DEVICE void scale(float factor) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) at[r][n][i] *= factor;
  }
  SOFTDIFF_DEVICE void add(const Strip& other) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) at[r][n][i] += other.at[r][n][i];
  }
  SOFTDIFF_DEVICE float largest() const {
    float most = 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) most = fmaxf(most, fabsf(at[r][n][i]));
    return most;
  }
};

// A strip as the first operand of the next product. The accumulator's layout is the operand's, so that nothing
// moves between lanes.
template <int kRows, int kTiles>
struct Operand {
  uint32_t high[kRows][kTiles][4], low[kRows][kTiles][4];
  SOFTDIFF_DEVICE Operand(const Strip<kRows, kTiles>& strip, float factor) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          split(strip.at[r][n][2 * i] * factor, strip.at[r][n][2 * i + 1] * factor, high[r][n / 2][n % 2 * 2 + i],
                low[r][n / 2][n % 2 * 2 + i]);
        }
  }
};

// out = in M^T, M a matrix of the table: `columns` tiles of the result, over `depth` tiles.
template <int kRows, int kTiles>
SOFTDIFF_DEVICE void times_transposed(const Operand<kRows, kTiles>& in, const Table& table, bool transposed, int parity,
                                      int columns, int depth, Strip<kRows, kTiles>& out) {
  out.clear();
  const int lane = here(static_cast<int>(threadIdx.x)) & 31;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (n >= columns) continue;
    // 16 columns of the result are two of an instruction's eight.
    const auto add = [&](const uint32_t(&a)[kRows][kTiles][4], int k, const Fragment& m) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        mma_f16(out.at[r][2 * n], a[r][k], m.at[0], m.at[2]);
        mma_f16(out.at[r][2 * n + 1], a[r][k], m.at[1], m.at[3]);
      }
    };
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      if (k >= depth) continue;
      const uint4* at = table.fragment(transposed, parity, n, k, lane);
      add(in.low, k, Fragment(at));
      add(in.high, k, Fragment(at, true));
    }
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      if (k < depth) add(in.high, k, Fragment(table.fragment(transposed, parity, n, k, lane)));
    }
  }
}

// A square of float16 pairs in shared memory: high parts, then low parts, rows `stride` apart.
struct Tile {
  uint16_t* high;
  uint16_t* low;
  int stride;

  SOFTDIFF_DEVICE void put(int row, int column, float x, float y) const {
    const int at = row * stride + column;
    split(x, y, *reinterpret_cast<uint32_t*>(high + at), *reinterpret_cast<uint32_t*>(low + at));
  }
  // Four neighbours of a row, times a factor.
  SOFTDIFF_DEVICE void put(int row, int column, const float (&x)[4], float factor) const {
    const int at = row * stride + column;
    uint2 h, l;
    split(x[0] * factor, x[1] * factor, h.x, l.x);
    split(x[2] * factor, x[3] * factor, h.y, l.y);
    *reinterpret_cast<uint2*>(high + at) = h;
    *reinterpret_cast<uint2*>(low + at) = l;
  }
  // 16 x 16 of one of them as a product's second operand: words 0 and 1 for eight columns, 2 and 3 for the next.
  SOFTDIFF_DEVICE Fragment second(bool lows, int row, int column, int lane = threadIdx.x & 31) const {
    Fragment f;
    ldmatrix_x4_trans(f.at, (lows ? low : high) + place(row, column, lane));
    return f;
  }
  // ... and as its first.
  SOFTDIFF_DEVICE Fragment first(bool lows, int row, int column, int lane = threadIdx.x & 31) const {
    Fragment f;
    ldmatrix_x4(f.at, (lows ? low : high) + place(row, column, lane));
    return f;
  }

 private:
  // The row of an 8 x 8 tile that this lane names.
  SOFTDIFF_DEVICE int place(int row, int column, int lane) const {
    return (row + (lane & 15)) * stride + column + (lane >> 4) * 8;
  }
};

// out = M X for kRows tiles of rows from `first`, M a matrix of the table of `limit` tiles of rows, X in shared
// memory with `columns` tiles of columns; over `depth` tiles. Rows beyond the limit are zeros, or (kRepeat) repeat
// the last tile, so that no branch comes between the products.
template <int kRows, int kTiles, bool kRepeat = false>
SOFTDIFF_DEVICE void times_shared(const Table& table, bool transposed, int parity, int first, int limit, const Tile& x,
                                  int columns, int depth, Strip<kRows, kTiles>& out) {
  out.clear();
  const int lane = here(static_cast<int>(threadIdx.x)) & 31;
  const auto matrix = [&](int k, bool low, Fragment(&m)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = kRepeat ? min(first + r, limit - 1) : first + r;
      if (kRepeat || row < limit) m[r] = Fragment(table.fragment(transposed, parity, row, k, lane), low);
    }
  };
  const auto add = [&](const Fragment(&m)[kRows], int k, bool low) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (n >= columns) continue;
      const Fragment b = x.second(low, 16 * k, 16 * n, lane);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (!kRepeat && first + r >= limit) continue;
        mma_f16(out.at[r][2 * n], m[r].at, b.at[0], b.at[1]);
        mma_f16(out.at[r][2 * n + 1], m[r].at, b.at[2], b.at[3]);
      }
    }
  };
  Fragment m[kRows];
#pragma unroll 1
  for (int k = 0; k < depth; ++k) {
    matrix(k, true, m);
    add(m, k, false);
    matrix(k, false, m);
    add(m, k, true);
  }
#pragma unroll 1
  for (int k = 0; k < depth; ++k) {
    matrix(k, false, m);
    add(m, k, false);
  }
}

// out = X M^T for kRows tiles of rows of X from `first`, of `limit`, X in shared memory: `columns` tiles of the result,
// over `depth` tiles. Rows beyond the limit repeat the last tile, so that no branch comes between the products.
template <int kRows, int kTiles>
SOFTDIFF_DEVICE void rows_transposed(const Tile& x, int first, int limit, const Table& table, bool transposed, int parity,
                                     int columns, int depth, Strip<kRows, kTiles>& out) {
  out.clear();
  const int lane = here(static_cast<int>(threadIdx.x)) & 31;
  const auto operand = [&](int k, bool low, Fragment(&f)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      f[r] = x.first(low, 16 * min(first + r, limit - 1), 16 * k, lane);
    }
  };
  const auto add = [&](const Fragment(&f)[kRows], int n, const Fragment& m) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      mma_f16(out.at[r][2 * n], f[r].at, m.at[0], m.at[2]);
      mma_f16(out.at[r][2 * n + 1], f[r].at, m.at[1], m.at[3]);
    }
  };
  Fragment high[kRows], low[kRows];
#pragma unroll 1
  for (int k = 0; k < depth; ++k) {
    operand(k, false, high);
    operand(k, true, low);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (n >= columns) continue;
      const uint4* at = table.fragment(transposed, parity, n, k, lane);
      add(low, n, Fragment(at));
      add(high, n, Fragment(at, true));
    }
  }
#pragma unroll 1
  for (int k = 0; k < depth; ++k) {
    operand(k, false, high);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (n < columns) add(high, n, Fragment(table.fragment(transposed, parity, n, k, lane)));
    }
  }
}

}  // namespace softdiff::cuda
