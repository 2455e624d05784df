// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set, one function of the op's name for each op: in a header that is included here, or,
// if it is short, in this file.
#pragma once

#include "corrupt.h"
#include "dct2.h"
#include "normal.h"
#include "soft_score_loss.h"
#include "spectral_loss.h"
#include "spectral_mix.h"

namespace softdiff::SOFTDIFF_ISA {

// template: copy this for a new op. Copies plane (b, c) row by row, through float32. The driver calls this for every
// plane, from several threads; `scratch` is the thread's own; `carve` (plane.h) lays out in it what a transform needs.
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

inline int64_t scratch_bytes(const Plan* plan_h, const Plan* plan_w, int64_t planes) {
  return layout(plan_h, plan_w, planes, nullptr, nullptr);
}

#define SOFTDIFF_ENTRY(name, Args) name,
const Kernels kernels = {SOFTDIFF_VL == 16 ? "avx512" : SOFTDIFF_VL == 8 ? "avx2" : "portable", scratch_bytes,
                         SOFTDIFF_KERNELS(SOFTDIFF_ENTRY) normal};
#undef SOFTDIFF_ENTRY

}  // namespace softdiff::SOFTDIFF_ISA
