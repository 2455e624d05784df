// SPDX-License-Identifier: Apache-2.0
// What each instruction set offers to the driver: one function an op, for one plane of one image.
#pragma once

#include "../args.h"
#include "plan.h"

namespace softdiff {

// Elements of a plane that are converted, or given noise, at a time: 4 KiB, well inside a first-level cache.
constexpr int64_t kChunk = 1024;

// Planes of scratch that an op takes.
template <class Args>
int64_t planes_of(const Args&) {
  return 1;
}

// One is for the mask, which several planes may share.
inline int64_t planes_of(const SpectralLossArgs&) { return 2; }

// One is for the sum. The inputs' masks are kept as well, as long as all that fits a second-level cache.
inline bool keeps_masks(const SpectralMixArgs& a) { return (2 + a.count) * a.shape.h * a.shape.w <= 1 << 18; }
inline int64_t planes_of(const SpectralMixArgs& a) { return keeps_masks(a) ? 2 + a.count : 2; }

struct Kernels {
  const char* name;
  // Bytes of scratch, 64-byte aligned, for planes of h x w: `planes` float32 copies and the strips.
  int64_t (*scratch)(const Plan* h, const Plan* w, int64_t planes);
  // `again`: the last plane in this scratch was the one before, in the same call. Gains are then there already if it was
  // another channel of the same image: at 32 px they cost 0.05 of 1.2 ns a value (AVX2), and three channels share them.
#define SOFTDIFF_MEMBER(name, Args) \
  void (*name)(const Args&, int64_t b, int64_t c, const Plan* h, const Plan* w, void* scratch, bool again);
  SOFTDIFF_KERNELS(SOFTDIFF_MEMBER)
#undef SOFTDIFF_MEMBER
  // Elements [begin, end) of image b; begin a multiple of kChunk.
  void (*normal)(const NormalArgs&, int64_t b, int64_t begin, int64_t end, void* scratch);
};

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace softdiff
