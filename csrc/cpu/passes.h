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
  SD_INLINE V operator()(int i) const { return load(fetched(i)); }
  SD_INLINE V part(int i, int64_t n) const { return load_part(fetched(i), n); }

 private:
  SD_INLINE const float* fetched(int i) const {
    const float* p = at + i * stride;
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + ahead), 0, 2);
    return p;
  }
};

SD_INLINE RowsAhead rows_ahead(const Plane& p, const float* at, int64_t stride) {
  return {at, stride, static_cast<uintptr_t>(p.h * stride * 4)};
}

// Brings lines of a result into the cache before they are written, since a store that misses waits for memory as a load
// does: of a small plane all while its columns are transformed, of a larger one the next strip's with each strip of the
// last pass. Blur and the loss, of batches in the third level, are 1.5 times as fast for it at 32 px.
struct Ahead {
  float* at = nullptr;
  int64_t h = 0, w = 0, stride = 0;
  bool whole = false;
  static constexpr int64_t kWhole = 4096, kLine = 16;
  SD_INLINE Ahead() = default;  // of nothing
  SD_INLINE Ahead(const Plane& p, float* out, int64_t out_stride)
      : at(out), h(p.h), w(p.w), stride(out_stride), whole(p.h * p.w <= kWhole) {}
  SD_INLINE void first_pass(int64_t j) const {
    if (whole || j == 0) fetch(j);
  }
  SD_INLINE void last_pass(int64_t j) const {
    if (!whole) fetch(j + VL);
  }

 private:
  SD_INLINE void fetch(int64_t j) const {
    if (j >= w || j % kLine != 0) return;
    for (int64_t i = 0; i < h; ++i) __builtin_prefetch(at + i * stride + j, 1, 3);
  }
};

SD_INLINE Ahead ahead_of(const Plane& p, const Image& out, int64_t b, int64_t c) {
  return out && is_plain(out) ? Ahead(p, plane_start(out, b, c), out.stride[2]) : Ahead();
}

// The difference of two.
struct RowsDifference {
  RowsAhead a, b;
  SD_INLINE V operator()(int i) const { return a(i) - b(i); }
  SD_INLINE V part(int i, int64_t n) const { return a.part(i, n) - b.part(i, n); }
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

// Where each place of a strip finds its row, for the passes over columns of an image's channels: all frequencies from
// `rows` on share the row p.nothing, where the first pass leaves what nobody reads.
SD_INLINE void set_offsets(Plane& p, int64_t rows) {
  const int32_t* position = p.plan_h->position;
  for (int64_t k = 0; k < p.h; ++k) p.offset[position[k]] = k < rows ? k * p.stride : p.nothing - p.s;
}

// The last pass finds zeros there.
SD_INLINE void clear_nothing(Plane& p) {
  for (int64_t j = 0; j < p.wp; j += VL) store(p.nothing + j, V{});
}

// R_H down the columns of p.s; row k of the result is frequency k, and none that set_offsets left out is to be looked at.
template <bool Scaled = false>
inline void columns_forward(Plane& p) {
  for (int64_t j = 0; j < p.wp; j += VL) {
    for (int64_t i = 0; i < p.h; ++i) p.x[i] = load(p.s + i * p.stride + j);
    two(Strip{p.x}, Spectrum<Scaled>{p.s + j, p.offset, p.plan_h->position_norm}, p.work, p.plan_h->level);
  }
}

// The same of columns in memory, of p.w columns: `from(j)` gives what reads them from column j on.
template <bool Scaled = false, class From>
inline void columns_forward_from(Plane& p, const Ahead& ahead, From from) {
  const Level* level = p.plan_h->level;
  for (int64_t j = 0; j < p.wp; j += VL) {
    const Spectrum<Scaled> out{p.s + j, p.offset, p.plan_h->position_norm};
    const auto in = from(j);
    ahead.first_pass(j);
    if (j + VL <= p.w) {
      two(in, out, p.work, level);
    } else {
      for (int64_t i = 0; i < p.h; ++i) p.x[i] = in.part(static_cast<int>(i), p.w - j);
      two(Strip{p.x}, out, p.work, level);
    }
  }
  clear_rows(p);
}

// The columns of the plane (b, c) of an image.
template <bool Scaled = false>
inline void columns_forward_of(Plane& p, const Ahead& ahead, const Image& image, int64_t b, int64_t c) {
  if (!is_plain(image)) {
    stage(p, image, Image{}, b, c);
    columns_forward<Scaled>(p);
    return;
  }
  const float* at = plane_start(image, b, c);
  columns_forward_from<Scaled>(p, ahead, [&](int64_t j) SD_LAMBDA { return rows_ahead(p, at + j, image.stride[2]); });
}

// R_H^T down the columns, of which the frequencies that set_offsets left out are zero; `finish(j, x)` takes the strip
// from column j on.
template <bool Scaled = false, class Finish>
inline void columns_inverse(Plane& p, const Ahead& ahead, Finish finish) {
  clear_nothing(p);
  for (int64_t j = 0; j < p.wp; j += VL) {
    ahead.last_pass(j);
    two_t(Spectrum<Scaled>{p.s + j, p.offset, p.plan_h->position_norm}, Strip{p.x}, p.work, p.plan_h->level);
    finish(j, p.x);
  }
}

// The same into p.s, or into rows of the caller's.
template <bool Scaled = false>
inline void columns_inverse_to(Plane& p, float* to = nullptr, int64_t to_stride = 0) {
  clear_nothing(p);
  const bool inside = to == nullptr;
  if (inside) to = p.s, to_stride = p.stride;
  const Ahead ahead = inside ? Ahead() : Ahead(p, to, to_stride);
  for (int64_t j = 0; j < p.wp; j += VL) {
    ahead.last_pass(j);
    const Spectrum<Scaled> in{p.s + j, p.offset, p.plan_h->position_norm};
    if (inside || j + VL <= p.w) {
      two_t(in, Rows{to + j, to_stride}, p.work, p.plan_h->level);
      continue;
    }
    two_t(in, Strip{p.x}, p.work, p.plan_h->level);
    for (int64_t i = 0; i < p.h; ++i) store_part(to + i * to_stride + j, p.w - j, p.x[i]);
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

// VL columns of VL rows of an image, from row k and column l of its plane (b, c) on; zeros beyond the plane.
SD_INLINE void read_tile(const Plane& p, const Image& image, int64_t b, int64_t c, int64_t k, int64_t l, V* tile) {
  const int64_t n = p.w - l < VL ? p.w - l : VL;
  const bool plain = is_plain(image);
  for (int i = 0; i < VL; ++i) {
    if (k + i >= p.h) {
      tile[i] = V{};
      continue;
    }
    const int64_t at = row_offset(image, b, c, k + i) + l * image.stride[3];
    const float* x = plain ? static_cast<const float*>(image.data) + at : read_row(image, at, n, p.row);
    tile[i] = n == VL ? load(x) : load_part(x, n);
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

// The sum of what `add(l, to)` adds to `to` for each place of a strip. Four sums side by side: one would wait for
// itself, longer than the strip's transform takes.
template <class Add>
SD_INLINE double strip_sum(int64_t n, Add add) {
  V sum[4] = {};
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

// Sums mask * spectrum^2 over a strip, and puts factor * mask * spectrum in its place.
template <int Terms>
SD_INLINE double energy(const Masked<Terms>& mask, int64_t n, float factor) {
  return strip_sum(n, [&](int64_t l, V& to) SD_LAMBDA {
    const V v = mask.y[l], masked = v * mask.gain(l);
    to += masked * v;
    mask.y[l] = masked * factor;
  });
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
inline void finish(Plane& p, const Image& out, int64_t b, int64_t c) {
  if (is_plain(out)) {
    columns_inverse_to<Scaled>(p, plane_start(out, b, c), out.stride[2]);
    return;
  }
  columns_inverse_to<Scaled>(p);
  for (int64_t i = 0; i < p.h; ++i) write_row(out, row_offset(out, b, c, i), p.w, p.s + i * p.stride);
}

}  // namespace softdiff::SOFTDIFF_ISA
