// SPDX-License-Identifier: Apache-2.0
// What a kernel sees of its thread: indices, barriers, warp collectives. A collective's trailing `file` and
// `line` default to the caller's: they tell two collectives apart and name both when lanes diverge.
#pragma once

#include <cstdint>
#include <cstring>

#include "shim_types.h"

#define SOFTDIFF_SHIM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace softdiff_shim {

struct Indices {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern Indices indices;

struct Site {
  const char* what;
  const char* file;
  int line;
};

uint32_t shuffle_xor(Site site, unsigned mask, uint32_t value, int lanes);
bool any(Site site, unsigned mask, bool vote);
void sync_threads(Site site);

}  // namespace softdiff_shim

// References to const, so that a kernel cannot assign to them; the engine writes what they refer to.
inline const uint3& threadIdx = softdiff_shim::indices.thread;
inline const uint3& blockIdx = softdiff_shim::indices.block;
inline const dim3& blockDim = softdiff_shim::indices.block_dim;
inline const dim3& gridDim = softdiff_shim::indices.grid_dim;

inline void __syncthreads(SOFTDIFF_SHIM_HERE) { softdiff_shim::sync_threads({"__syncthreads", file, line}); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, SOFTDIFF_SHIM_HERE) {
  static_assert(sizeof(T) == 4, "the shim shuffles 32-bit types");
  uint32_t word;
  std::memcpy(&word, &value, 4);
  word = softdiff_shim::shuffle_xor({"__shfl_xor_sync", file, line}, mask, word, lanes);
  std::memcpy(&value, &word, 4);
  return value;
}

inline int __any_sync(unsigned mask, int vote, SOFTDIFF_SHIM_HERE) {
  return softdiff_shim::any({"__any_sync", file, line}, mask, vote != 0);
}
