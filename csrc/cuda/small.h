// SPDX-License-Identifier: Apache-2.0
// Planes of up to 24 px a side, several of them in a block: a thread takes a whole line, folded, in registers, in
// plain float32. Tensor cores would work on padding here.
#pragma once

#include "ops.h"

namespace softdiff::cuda {

constexpr int kSmallSide = 24;
constexpr int kSmallThreads = 128;

// The transform's matrix of an axis and its transpose: each [parity][kN / 2][kN / 2] in float32, zeros beyond n.
struct SmallTables {
  const float* h;
  const float* w;
};

template <int kN>
struct SmallShape {
  static constexpr int kHalf = kN / 2;
  static constexpr int kStride = kN + 1;  // of a plane's rows
  static int planes(int h, int w) { return kSmallThreads / (h > w ? h : w); }
  static size_t shared(int h, int w, bool mix) {
    const int count = planes(h, w);
    return (mix ? 2 : 1) * room<float>(count * h * kStride) + 2 * room<float>(4 * kHalf * kHalf) + 4 * room<float>(count * kN) +
           room<Values>(count) + room<float>(kSmallThreads);
  }
};

// A line by parity: pixels folded, or frequencies.
template <int kHalf>
struct Line {
  float at[2][kHalf];

  SOFTDIFF_DEVICE void read_folded(const float* from, int step, int n) {
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
      const bool pair = 2 * j + 1 < n, there = 2 * j < n;
      const float x = there ? from[j * step] : 0.0f, y = pair ? from[(n - 1 - j) * step] : 0.0f;
      at[0][j] = x + y;
      at[1][j] = x - y;
    }
  }
  SOFTDIFF_DEVICE void read_spectrum(const float* from, int step, int n) {
#pragma unroll
    for (int i = 0; i < 2 * kHalf; ++i) at[i & 1][i / 2] = i < n ? from[i * step] : 0.0f;
  }

  // put(k, u) for every frequency. The loop stays a loop: unrolled, the compiler loads the whole table first, into
  // more registers than there are.
  template <class Put>
  SOFTDIFF_DEVICE void transform(const float* table, int n, Put put) const {
#pragma unroll 1
    for (int k = 0; 2 * k < n; ++k) {
      put(2 * k, dot(table + k * kHalf, 0));
      if (2 * k + 1 < n) put(2 * k + 1, dot(table + (kHalf + k) * kHalf, 1));
    }
  }
  // put(j, x) for every pixel.
  template <class Put>
  SOFTDIFF_DEVICE void transform_back(const float* table, int n, Put put) const {
    const float* transposed = table + 2 * kHalf * kHalf;
#pragma unroll 1
    for (int j = 0; 2 * j < n; ++j) {
      const float even = dot(transposed + j * kHalf, 0), odd = dot(transposed + (kHalf + j) * kHalf, 1);
      put(j, even + odd);
      if (2 * j + 1 < n) put(n - 1 - j, even - odd);
    }
  }

 private:
  SOFTDIFF_DEVICE float dot(const float* row, int parity) const {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kHalf; j += 4) {
      const float4 d = *reinterpret_cast<const float4*>(row + j);
      sum = fmaf(d.x, at[parity][j], sum), sum = fmaf(d.y, at[parity][j + 1], sum);
      sum = fmaf(d.z, at[parity][j + 2], sum), sum = fmaf(d.w, at[parity][j + 3], sum);
    }
    return sum;
  }
};

// Five blocks, 96 registers: left alone, ptxas aims at fewer and spills.
template <class Op, int kN>
__global__ void __launch_bounds__(kSmallThreads, 5)
    small_kernel(const __grid_constant__ typename Op::Args a, const SmallTables tables, int planes) {
  using Shape = SmallShape<kN>;
  constexpr int kHalf = Shape::kHalf, kStride = Shape::kStride;
  const Op op{a};
  const int h = static_cast<int>(a.shape.h), w = static_cast<int>(a.shape.w), channels = static_cast<int>(a.shape.c);
  const int64_t total = a.shape.b * a.shape.c, start = static_cast<int64_t>(blockIdx.x) * planes;
  const int count = static_cast<int>(total - start < planes ? total - start : planes);
  const int thread = threadIdx.x;

  Arena arena;
  float* pixels = arena.take<float>(planes * h * kStride);
  float* table_h = arena.take<float>(4 * kHalf * kHalf);
  float* table_w = arena.take<float>(4 * kHalf * kHalf);
  float* gain[4];
  for (int i = 0; i < 4; ++i) gain[i] = arena.take<float>(planes * kN);
  Values* values = arena.take<Values>(planes);
  float* energies = arena.take<float>(kSmallThreads);
  float* sums = Op::kMix ? arena.take<float>(planes * h * kStride) : nullptr;

  for (int i = thread; i < 4 * kHalf * kHalf; i += kSmallThreads) table_h[i] = tables.h[i], table_w[i] = tables.w[i];
  if (thread < count) values[thread] = op.values(static_cast<int>((start + thread) / channels));
  const int groups = (w + 3) / 4;
  const auto plane_of = [&](int local, int& b, int& c) {
    b = static_cast<int>((start + local) / channels), c = static_cast<int>((start + local) % channels);
  };
  const auto load = [&](int input) {
#pragma unroll 1
    for (int i = thread; i < count * h * groups; i += kSmallThreads) {
      const int local = i / (h * groups), y = i / groups % h, x = i % groups * 4;
      int b, c;
      plane_of(local, b, c);
      float v[4];
      read(Plane(op.source(input, 0), b, c), y, x, 0, min(w - x, 4), v);
      if constexpr (Op::kSources == 2) {
        float other[4];
        read(Plane(op.source(input, 1), b, c), y, x, 0, min(w - x, 4), other);
#pragma unroll
        for (int t = 0; t < 4; ++t) v[t] -= other[t];
      }
      float* to = pixels + (local * h + y) * kStride + x;
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        if (x + t < w) to[t] = v[t];
      }
    }
    __syncthreads();
  };
  const bool has_row = thread < count * h, has_column = thread < count * w;
  float* row = pixels + thread * kStride;
  const int column_plane = thread / w, column = thread % w;
  float* top = pixels + column_plane * h * kStride + column;
  Line<kHalf> line;

  // A line's results go where it came from, one by one: all of it is in registers.
  const auto into = [](float* to, int step) { return [=](int i, float x) { to[i * step] = x; }; };
  const auto rows_forward = [&] {
    if (has_row) {
      line.read_folded(row, 1, w);
      line.transform(table_w, w, into(row, 1));
    }
    __syncthreads();
  };
  const auto column_back = [&](const float* from) {
    line.read_spectrum(from, kStride, h);
    line.transform_back(table_h, h, into(top, kStride));
  };

  load(0);
  if constexpr (Op::kShift == Shift::filter && !Op::kMasked) {
    const int share = kSmallThreads / planes, local = thread / share;
    if (local < count) {
      const Values& v = values[local];
      const auto fill = [&](bool rows, int n, float* one, float* other) {
        const float unit = 3.14159265358979f / static_cast<float>(n);
        for (int k = thread % share; k < n; k += share) gain_at(v, unit * static_cast<float>(k), rows, one[k], other[k]);
      };
      fill(true, h, gain[0] + local * kN, gain[1] + local * kN);
      fill(false, w, gain[2] + local * kN, gain[3] + local * kN);
    }
  }
  if constexpr (Op::kShift != Shift::inverse) rows_forward();
  float energy = 0.0f;
  if constexpr (Op::kMix) {
    float* sum = sums + (top - pixels);
#pragma unroll 1
    for (int input = 0; input < a.count; ++input) {
      if (input > 0) {
        load(input);
        rows_forward();
      }
      if (has_column) {
        int b, c;
        plane_of(column_plane, b, c);
        line.read_folded(top, kStride, h);
        line.transform(table_h, h, [&](int k, float u) {
          float before = input == 0 ? 0.0f : sum[k * kStride];
          if (input == 0 && op.noisy()) before = op.noise(b, c, k, column);
          sum[k * kStride] = fmaf(op.mask(input, b, c, k, column), u, before);
        });
      }
      __syncthreads();
    }
    if (has_column) column_back(sum);
  } else if (has_column) {
    if constexpr (Op::kShift == Shift::inverse) {
      column_back(top);
    } else if constexpr (Op::kShift == Shift::forward) {
      line.read_folded(top, kStride, h);
      line.transform(table_h, h, into(top, kStride));
    } else if constexpr (Op::kMasked) {
      int b, c;
      plane_of(column_plane, b, c);
      line.read_folded(top, kStride, h);
      line.transform(table_h, h, [&](int k, float u) { top[k * kStride] = op.apply(u, op.mask(b, c, k, column), energy); });
      if (op.backward()) column_back(top);
    } else {
      const Values& v = values[column_plane];
      const int at = column_plane * kN;
      const float first = gain[2][at + column], second = v.reverse ? gain[3][at + column] : 0.0f;
      const float constant = mask_constant(v);
      line.read_folded(top, kStride, h);
      line.transform(table_h, h, [&](int k, float u) {
        float m = fmaf(gain[0][at + k], first, constant);
        if (v.reverse) m = fmaf(gain[1][at + k], second, m);
        top[k * kStride] = op.apply(u, m, energy);
      });
      if (op.backward()) column_back(top);
    }
  }
  if constexpr (Op::kEnergy) energies[thread] = energy;
  __syncthreads();
  if constexpr (Op::kEnergy) {
    if (thread < count) {
      double sum = 0.0;
      for (int i = 0; i < w; ++i) sum += energies[thread * w + i];
      a.plane_loss[start + thread] = sum;
    }
  }
  if (!op.backward()) return;
  if constexpr (Op::kShift != Shift::forward) {
    if (has_row) {
      line.read_spectrum(row, 1, w);
      line.transform_back(table_w, w, into(row, 1));
    }
    __syncthreads();
  }
#pragma unroll 1
  for (int i = thread; i < count * h * groups; i += kSmallThreads) {
    const int local = i / (h * groups), y = i / groups % h, x = i % groups * 4;
    int b, c;
    plane_of(local, b, c);
    const float* from = pixels + (local * h + y) * kStride + x;
    float v[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) v[t] = x + t < w ? from[t] : 0.0f;
    op.finish(values[local], b, c, y, x, 0, min(w - x, 4), v);
  }
}

}  // namespace softdiff::cuda
