// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set: an op's header, which has one function of the op's name, is included here.
#pragma once

#include "corrupt.h"
#include "dct2.h"
#include "identity.h"
#include "normal.h"
#include "soft_score_loss.h"
#include "spectral_mix.h"

namespace softdiff::SOFTDIFF_ISA {

inline int64_t scratch_bytes(const Plan* plan_h, const Plan* plan_w, int planes) {
  return layout(plan_h, plan_w, planes, nullptr, nullptr);
}

#define SOFTDIFF_ENTRY(name, Args) name,
const Kernels kernels = {SOFTDIFF_VL == 16 ? "avx512" : SOFTDIFF_VL == 8 ? "avx2" : "portable", scratch_bytes,
                         SOFTDIFF_KERNELS(SOFTDIFF_ENTRY) normal};
#undef SOFTDIFF_ENTRY

}  // namespace softdiff::SOFTDIFF_ISA
