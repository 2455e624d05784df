// SPDX-License-Identifier: Apache-2.0
// dct2 and idct2.
#pragma once

#include "passes.h"

namespace softdiff::SOFTDIFF_ISA {

// DCT2 of the plane (b, c) of an image, into p.s.
SD_INLINE void forward(Plane& p, const Image& in, const Ahead& ahead, int64_t b, int64_t c) {
  set_offsets(p, p.h);
  if (is_plain(in)) {
    columns_forward_of<true>(p, ahead, in, b, c);
  } else {
    stage(p, in, Image{}, b, c);
    columns_forward<true>(p);
  }
  rows_transform(p, false);
}

SD_INLINE void inverse(Plane& p, const Image& out, int64_t b, int64_t c) {
  set_offsets(p, p.h);
  rows_transform(p, true);
  finish<true>(p, out, b, c);
}

inline void dct2(const Dct2Args& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w, void* scratch,
                 bool) {
  Plane p = carve(1, scratch, plan_h, plan_w);
  if (a.inverse) {
    stage(p, a.in, Image{}, b, c);
    inverse(p, a.out, b, c);
    return;
  }
  forward(p, a.in, ahead_of(p, a.out, b, c), b, c);
  for (int64_t i = 0; i < p.h; ++i) write_row(a.out, row_offset(a.out, b, c, i), p.w, p.s + i * p.stride);
}

}  // namespace softdiff::SOFTDIFF_ISA
