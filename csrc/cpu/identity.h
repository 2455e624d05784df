// SPDX-License-Identifier: Apache-2.0
// template: copy this for a new op. identity: copies a plane row by row, through float32.
#pragma once

#include "plane.h"

namespace softdiff::SOFTDIFF_ISA {

// One plane, (b, c), of the images. The driver calls this for every plane, from several threads; `scratch` is the
// thread's own, and `carve` (plane.h) lays out in it what a transform needs.
inline void identity(const IdentityArgs& a, int64_t b, int64_t c, const Plan* plan_h, const Plan* plan_w, void* scratch,
                     bool) {
  const Plane p = carve(1, scratch, plan_h, plan_w);
  for (int64_t i = 0; i < p.h; ++i) {
    for (int64_t j = 0; j < p.w; j += kChunk) {
      const int64_t n = p.w - j < kChunk ? p.w - j : kChunk;
      const float* x = read_row(a.in, row_offset(a.in, b, c, i) + j * a.in.stride[3], n, p.row);
      write_row(a.out, row_offset(a.out, b, c, i) + j * a.out.stride[3], n, x);
    }
  }
}

}  // namespace softdiff::SOFTDIFF_ISA
