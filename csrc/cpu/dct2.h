// SPDX-License-Identifier: Apache-2.0
// dct2 and idct2.
#pragma once

#include "passes.h"

namespace softdiff::SOFTDIFF_ISA {

inline void dct2(const Dct2Args& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w, void* scratch,
                 bool) {
  Plane p = carve(1, scratch, plan_h, plan_w);
  set_offsets(p, p.h);
  if (a.inverse) {
    stage(p, a.in, Image{}, b, c);
    rows_transform(p, true);
    finish<true>(p, a.out, b, c);
    return;
  }
  columns_forward_of<true>(p, ahead_of(p, a.out, b, c), a.in, b, c);
  rows_transform(p, false);
  for (int64_t i = 0; i < p.h; ++i) write_row(a.out, row_offset(a.out, b, c, i), p.w, p.s + i * p.stride);
}

}  // namespace softdiff::SOFTDIFF_ISA
