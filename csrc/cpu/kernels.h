// SPDX-License-Identifier: Apache-2.0
// What each instruction set offers to the driver: one function an op, for one plane of one image.
#pragma once

#include "../args.h"
#include "plan.h"

namespace softdiff {

// Elements of a plane that are converted, or given noise, at a time: 4 KiB, well inside a first-level cache.
constexpr int64_t kChunk = 1024;

struct Kernels {
  const char* name;
  // Bytes of scratch, 64-byte aligned, for planes of h x w: `planes` float32 copies and the strips.
  int64_t (*scratch)(const Plan* h, const Plan* w, int planes);
  // `again`: the last plane in this scratch was another channel of the same image in the same call, whose gains are
  // these. At 32 px they cost 0.05 of 1.2 ns a value (AVX2), and three channels share them.
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
