// SPDX-License-Identifier: Apache-2.0
// normal: the noise stream itself.
#pragma once

#include "convert.h"
#include "kernels.h"
#include "noise.h"

namespace softdiff::SOFTDIFF_ISA {

inline void normal(const NormalArgs& a, int64_t b, int64_t begin, int64_t end, void* scratch) {
  const Stream stream(key_of(a.key, b));
  float* buffer = static_cast<float*>(scratch);
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    fill_normals(stream, static_cast<uint64_t>(at >> 2), (n + 3) >> 2, buffer);
    write_row(a.out, b * a.count + at, n, buffer);
  }
}

}  // namespace softdiff::SOFTDIFF_ISA
