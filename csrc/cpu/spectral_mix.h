// SPDX-License-Identifier: Apache-2.0
// spectral_mix: IDCT2(sum_k mask_k * DCT2(in_k) + noise_mask * n).
//
// The sum is kept in a second plane as strips of rows hold their spectrum, and so are masks that planes may share. The
// rows of the last input go forward, to the sum and back in one pass.
#pragma once

#include "runs.h"
#include "spectral_loss.h"

namespace softdiff::SOFTDIFF_ISA {

// The stream's VL rows from k on, VL elements of each from l on, whose blocks are far apart; p.w is a multiple of 4.
SD_INLINE void draw_tile(const Plane& p, const Stream& stream, const Blocks& blocks, int64_t c, int64_t k, int64_t l,
                         V* tile) {
  constexpr int kGroups = VL < 8 ? 1 : 2;
  for (int i = 0; i < VL; i += 4 * kGroups) {
    V some[4 * kGroups];
    const uint64_t first = static_cast<uint64_t>((c * p.h + k + i) * p.w + l) >> 2;
    normals<kGroups>(stream, blocks, first, static_cast<uint64_t>(p.w), some);
    for (int r = 0; r < 4 * kGroups; ++r) tile[i + r] = some[r];
  }
}

// noise_mask * n in the strips of `total`. p.s is lost.
inline void noise_strips(Plane& p, const SpectralMixArgs& a, int64_t b, int64_t c, V* total) {
  const Stream stream(key_of(a.key, b));
  const Blocks blocks(static_cast<uint64_t>(p.w / 4));
  // Rows of whole blocks are drawn tile by tile.
  const bool drawn = !a.noise && p.w % 4 == 0;
  if (!a.noise && !drawn) {
    const float* run = nullptr;
    walk(
        p, [&](int64_t first, int64_t count) { run = draw(p, stream, c * p.h * p.w + first, count); },
        [&](int64_t i, int64_t j, int64_t n, int64_t at) {
          combine<0>(p.s + i * p.stride + j, run + at, nullptr, 0.0f, nullptr, 0.0f, n);
        });
  }
  for (int64_t k = 0; k < p.hp; k += VL, total += p.w) {
    strip_of(p, k, p.plan_h->norm, p.plan_w->norm, total, [&](int64_t l, V* tile) SD_LAMBDA {
      if (a.noise) {
        read_tile(p, a.noise, b, c, k, l, tile);
      } else if (drawn) {
        draw_tile(p, stream, blocks, c, k, l, tile);
      } else {
        for (int i = 0; i < VL; ++i) tile[i] = load(p.s + (k + i) * p.stride + l);
      }
      V mask[VL];
      read_tile(p, a.noise_mask, b, c, k, l, mask);
      for (int i = 0; i < VL; ++i) tile[i] *= mask[i];
    });
  }
}

// What becomes of a strip of an input's spectrum: times the mask, plus the sum so far.
template <bool First>
struct Mixed {
  V* to;
  const V *mask, *sum;
  SD_INLINE void operator()(int i, V v) const { to[i] = First ? v * mask[i] : v * mask[i] + sum[i]; }
  SD_INLINE Mixed from(int i) const { return {to + i, mask + i, sum + i}; }
};

inline void spectral_mix(const SpectralMixArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w,
                         void* scratch, bool again) {
  Plane p = carve(planes_of(a), scratch, plan_h, plan_w);
  const int64_t plane = p.hp * p.stride;
  set_offsets(p, p.h);
  bool begun = a.noise_mask && (a.noise || a.key.present);
  if (begun) noise_strips(p, a, b, c, reinterpret_cast<V*>(p.s + plane));
  for (int64_t n = 0; n < a.count; ++n, begun = true) {
    const bool last = n + 1 == a.count;
    const bool kept = keeps_masks(a) && a.mask[n].stride[1] == 0, same = kept && same_mask(a.mask[n], c, again);
    columns_forward_of(p, last ? ahead_of(p, a.out, b, c) : Ahead(), a.in[n], b, c);
    V* sum = reinterpret_cast<V*>(p.s + plane);
    V* mask = kept ? reinterpret_cast<V*>(p.s + (2 + n) * plane) : p.y;
    for (int64_t k = 0; k < p.hp; k += VL, sum += p.w) {
      if (!same) mask_strip(p, a.mask[n], b, c, k, plan_h->norm_square, plan_w->norm_square, mask);
      rows_load(p, k, p.x, nullptr);
      V* to = last ? p.y : sum;
      if (begun) {
        two(Strip{p.x}, Mixed<false>{to, mask, sum}, p.work, plan_w->level);
      } else {
        two(Strip{p.x}, Mixed<true>{to, mask, sum}, p.work, plan_w->level);
      }
      if (kept) mask += p.w;
      if (!last) continue;
      two_t(Strip{p.y}, Strip{p.x}, p.work, plan_w->level);
      rows_store(p, k, p.x, nullptr);
    }
  }
  finish<false>(p, a.out, b, c);
}

}  // namespace softdiff::SOFTDIFF_ISA
