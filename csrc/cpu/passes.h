// SPDX-License-Identifier: Apache-2.0
// The passes over a plane: columns, rows, columns.
//
// The 2-D transform R_H x R_W^T needs one transposition in and one out: columns are transformed VL at
// a time where they lie; rows VL at a time through VL x VL tiles, where forward, mask and inverse follow
// one another before the tile goes back. Rows of the spectrum whose gain is under exp(-20) = 2e-9 are
// dropped: a strong blur makes the row pass cheap.
#pragma once

#include "dct_chirp.h"
#include "plane.h"

namespace softdiff::SOFTDIFF_ISA {

// VL columns of rows that are `stride` apart, in their order.
struct Rows {
  float* at;
  int64_t stride;
  SD_INLINE V operator()(int i) const { return load(at + i * stride); }
  SD_INLINE void operator()(int i, V v) const { store(at + i * stride, v); }
  SD_INLINE Rows from(int i) const { return {at + i * stride, stride}; }
};

// The same to be read once, while the plane `ahead` bytes further on is fetched: the one that this thread most
// likely takes next. Asking beyond the image does no harm.
struct RowsAhead {
  const float* at;
  int64_t stride;
  uintptr_t ahead;
  SD_INLINE V operator()(int i) const {
    const float* p = at + i * stride;
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + ahead), 0, 2);
    return load(p);
  }
};

SD_INLINE RowsAhead rows_ahead(const Plane& p, const float* at, int64_t stride) {
  return {at, stride, static_cast<uintptr_t>(p.h * stride * 4)};
}

// The difference of two.
struct RowsDifference {
  RowsAhead a, b;
  SD_INLINE V operator()(int i) const { return a(i) - b(i); }
};

// VL columns of a plane of the spectrum, whose rows are frequencies, by the places of a strip; times `scale`.
template <bool Scaled>
struct Spectrum {
  float* at;
  const int64_t* offset;
  const float* scale;
  SD_INLINE V operator()(int i) const {
    const V v = load(at + offset[i]);
    return Scaled ? v * scale[i] : v;
  }
  SD_INLINE void operator()(int i, V v) const { store(at + offset[i], Scaled ? v * scale[i] : v); }
  SD_INLINE Spectrum from(int i) const { return {at, offset + i, Scaled ? scale + i : nullptr}; }
};

// Where each place of a strip finds its row; those from `rows` on are zero.
SD_INLINE void set_offsets(Plane& p, int64_t rows) {
  const int32_t* position = p.plan_h->position;
  for (int64_t k = 0; k < p.h; ++k) p.offset[position[k]] = k < rows ? k * p.stride : p.nothing - p.s;
  if (rows < p.h) {
    for (int64_t j = 0; j < p.wp; j += VL) store(p.nothing + j, V{});
  }
}

// R_H down the columns; row k of the result is frequency k, and none from `rows` on is to be looked at. The columns
// come from p.s, or from rows of the caller's, `from_stride` apart and not padded.
template <bool Scaled = false>
inline void columns_forward(Plane& p, int64_t rows, const float* from = nullptr, int64_t from_stride = 0) {
  set_offsets(p, rows);
  const Level* level = p.plan_h->level;
  for (int64_t j = 0; j < p.wp; j += VL) {
    float* s = p.s + j;
    const Spectrum<Scaled> out{s, p.offset, p.plan_h->position_norm};
    if (from != nullptr && j + VL <= p.w) {
      two(rows_ahead(p, from + j, from_stride), out, p.work, level);
      continue;
    }
    for (int64_t i = 0; i < p.h; ++i) {
      if (from == nullptr) {
        p.x[i] = load(s + i * p.stride);
      } else {
        p.x[i] = V{};
        __builtin_memcpy(&p.x[i], from + i * from_stride + j, static_cast<size_t>(p.w - j) * 4);
      }
    }
    two(Strip{p.x}, out, p.work, level);
  }
  if (from != nullptr) clear_rows(p);
}

// The columns of a - b, two planes in memory whose width is a multiple of VL.
inline void columns_forward_difference(Plane& p, int64_t rows, RowsDifference from) {
  set_offsets(p, rows);
  for (int64_t j = 0; j < p.wp; j += VL, from.a.at += VL, from.b.at += VL) {
    two(from, Spectrum<false>{p.s + j, p.offset, nullptr}, p.work, p.plan_h->level);
  }
  clear_rows(p);
}

// R_H^T down the columns, of which only the first `rows` frequencies are not zero; `finish(j, x)` takes the strip
// from column j on.
template <bool Scaled = false, class Finish>
inline void columns_inverse(Plane& p, int64_t rows, Finish finish) {
  set_offsets(p, rows);
  for (int64_t j = 0; j < p.wp; j += VL) {
    two_t(Spectrum<Scaled>{p.s + j, p.offset, p.plan_h->position_norm}, Strip{p.x}, p.work, p.plan_h->level);
    finish(j, p.x);
  }
}

// The same into p.s, or into rows of the caller's.
template <bool Scaled = false>
inline void columns_inverse_to(Plane& p, int64_t rows, float* to = nullptr, int64_t to_stride = 0) {
  set_offsets(p, rows);
  const bool inside = to == nullptr;
  if (inside) to = p.s, to_stride = p.stride;
  for (int64_t j = 0; j < p.wp; j += VL) {
    const Spectrum<Scaled> in{p.s + j, p.offset, p.plan_h->position_norm};
    if (inside || j + VL <= p.w) {
      two_t(in, Rows{to + j, to_stride}, p.work, p.plan_h->level);
      continue;
    }
    two_t(in, Strip{p.x}, p.work, p.plan_h->level);
    for (int64_t i = 0; i < p.h; ++i) {
      __builtin_memcpy(to + i * to_stride + j, &p.x[i], static_cast<size_t>(p.w - j) * 4);
    }
  }
}

SD_INLINE void rows_load(const Plane& p, int64_t k, V* x, const int32_t* position) {
  for (int64_t l = 0; l < p.wp; l += VL) {
    V tile[VL];
    for (int i = 0; i < VL; ++i) tile[i] = load(p.s + (k + i) * p.stride + l);
    transpose(tile);
    if (position == nullptr) {
      for (int i = 0; i < VL; ++i) x[l + i] = tile[i];
    } else {
      for (int i = 0; i < VL && l + i < p.w; ++i) x[position[l + i]] = tile[i];
    }
  }
}

SD_INLINE void rows_store(const Plane& p, int64_t k, const V* x, const int32_t* position) {
  for (int64_t l = 0; l < p.wp; l += VL) {
    V tile[VL];
    if (position == nullptr) {
      for (int i = 0; i < VL; ++i) tile[i] = x[l + i];
    } else {
      for (int i = 0; i < VL; ++i) tile[i] = l + i < p.w ? x[position[l + i]] : V{};
    }
    transpose(tile);
    for (int i = 0; i < VL; ++i) store(p.s + (k + i) * p.stride + l, tile[i]);
  }
}

// Forward and normalised along the rows: the spectrum in its natural order, or back from it.
inline void rows_transform(Plane& p, bool inverse) {
  const int32_t* position = p.plan_w->position;
  const float* norm = p.plan_w->position_norm;
  for (int64_t k = 0; k < p.hp; k += VL) {
    rows_load(p, k, p.x, inverse ? position : nullptr);
    if (inverse) {
      for (int64_t l = 0; l < p.w; ++l) p.x[l] *= norm[l];
      two_t(Strip{p.x}, Strip{p.y}, p.work, p.plan_w->level);
    } else {
      two(Strip{p.x}, Strip{p.y}, p.work, p.plan_w->level);
      for (int64_t l = 0; l < p.w; ++l) p.y[l] *= norm[l];
    }
    rows_store(p, k, p.y, inverse ? nullptr : position);
  }
}

// A strip of rows' spectrum under a mask of `Terms` products of gains.
template <int Terms>
struct Masked {
  V* y;
  const float *w0, *w1, *w2;
  V h0, h1, h2;
  SD_INLINE V gain(int64_t i) const {
    V gain = h0 * w0[i];
    if constexpr (Terms > 1) gain += h1 * w1[i];
    if constexpr (Terms > 2) gain += h2 * w2[i];
    return gain;
  }
  SD_INLINE void operator()(int i, V v) const {
    // One term in an order in which no product can be made, and spilled, before v is there.
    y[i] = Terms == 1 ? v * w0[i] * h0 : v * gain(i);
  }
  SD_INLINE Masked from(int i) const { return {y + i, w0 + i, w1 + i, w2 + i, h0, h1, h2}; }
};

// Sums mask * spectrum^2 over a strip, and puts factor * mask * spectrum in its place. Four sums side by side: one
// would wait for itself, longer than the strip's transform takes.
template <int Terms>
SD_INLINE double energy(const Masked<Terms>& mask, int64_t n, float factor) {
  V sum[4] = {};
  const auto add = [&](int64_t l, V& to) SD_LAMBDA {
    const V v = mask.y[l], masked = v * mask.gain(l);
    to += masked * v;
    mask.y[l] = masked * factor;
  };
  int64_t l = 0;
  for (; l + 4 <= n; l += 4) {
    for (int i = 0; i < 4; ++i) add(l + i, sum[i]);
  }
  for (; l < n; ++l) add(l, sum[0]);
  const V all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  double total = 0.0;
  for (int i = 0; i < VL; ++i) total += static_cast<double>(all[i]);
  return total;
}

// Rows forward, times the mask, and, unless `measure_only`, back. With `Energy`, returns the sum of mask *
// spectrum^2, and multiplies what goes back by `factor`.
template <int Terms, bool Energy>
inline double rows_mask(Plane& p, int64_t rows, bool measure_only, float factor) {
  double total = 0.0;
  for (int64_t k = 0; k < rows; k += VL) {
    const Masked<Terms> mask{p.y, p.gain_w[0], p.gain_w[1], p.gain_w[2], load(p.gain_h[0] + k),
                             Terms > 1 ? load(p.gain_h[1] + k) : V{}, Terms > 2 ? load(p.gain_h[2] + k) : V{}};
    rows_load(p, k, p.x, nullptr);
    if constexpr (Energy) {
      two(Strip{p.x}, Strip{p.y}, p.work, p.plan_w->level);
      total += energy(mask, p.w, factor);
    } else {
      two(Strip{p.x}, mask, p.work, p.plan_w->level);
    }
    if (measure_only) continue;
    two_t(Strip{p.y}, Strip{p.x}, p.work, p.plan_w->level);
    rows_store(p, k, p.x, nullptr);
  }
  return total;
}

// The last pass, to where the result belongs.
template <bool Scaled>
inline void finish(Plane& p, const Image& out, int64_t b, int64_t c, int64_t rows) {
  if (is_plain(out)) {
    columns_inverse_to<Scaled>(p, rows, plane_start(out, b, c), out.stride[2]);
    return;
  }
  columns_inverse_to<Scaled>(p, rows);
  for (int64_t i = 0; i < p.h; ++i) write_row(out, row_offset(out, b, c, i), p.w, p.s + i * p.stride);
}

}  // namespace softdiff::SOFTDIFF_ISA
