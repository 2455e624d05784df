// SPDX-License-Identifier: Apache-2.0
// What a kernel sees of its thread: indices, barriers, warp collectives, atomics. A collective's trailing `file` and
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

enum class Shuffle { kIndex, kUp, kDown, kXor };
uint32_t shuffle(Site site, Shuffle kind, unsigned mask, uint32_t value, unsigned operand, int width);
unsigned ballot(Site site, unsigned mask, bool vote);
void sync_warp(Site site, unsigned mask);
int sync_threads(Site site, int vote);

template <class T>
T shuffle_word(Site site, Shuffle kind, unsigned mask, T value, unsigned operand, int width) {
  static_assert(sizeof(T) == 4, "the shim shuffles 32-bit types");
  uint32_t word;
  std::memcpy(&word, &value, 4);
  word = shuffle(site, kind, mask, word, operand, width);
  std::memcpy(&value, &word, 4);
  return value;
}

}  // namespace softdiff_shim

// References to const, so that a kernel cannot assign to them; the engine writes what they refer to.
inline const uint3& threadIdx = softdiff_shim::indices.thread;
inline const uint3& blockIdx = softdiff_shim::indices.block;
inline const dim3& blockDim = softdiff_shim::indices.block_dim;
inline const dim3& gridDim = softdiff_shim::indices.grid_dim;

inline void __syncthreads(SOFTDIFF_SHIM_HERE) { softdiff_shim::sync_threads({"__syncthreads", file, line}, 0); }
inline int __syncthreads_or(int vote, SOFTDIFF_SHIM_HERE) {
  return softdiff_shim::sync_threads({"__syncthreads_or", file, line}, vote);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, SOFTDIFF_SHIM_HERE) {
  softdiff_shim::sync_warp({"__syncwarp", file, line}, mask);
}
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, SOFTDIFF_SHIM_HERE) {
  using namespace softdiff_shim;
  return shuffle_word({"__shfl_sync", file, line}, Shuffle::kIndex, mask, value, static_cast<unsigned>(lane), width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SOFTDIFF_SHIM_HERE) {
  using namespace softdiff_shim;
  return shuffle_word({"__shfl_up_sync", file, line}, Shuffle::kUp, mask, value, delta, width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SOFTDIFF_SHIM_HERE) {
  using namespace softdiff_shim;
  return shuffle_word({"__shfl_down_sync", file, line}, Shuffle::kDown, mask, value, delta, width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SOFTDIFF_SHIM_HERE) {
  using namespace softdiff_shim;
  return shuffle_word({"__shfl_xor_sync", file, line}, Shuffle::kXor, mask, value, static_cast<unsigned>(lanes), width);
}

inline unsigned __ballot_sync(unsigned mask, int vote, SOFTDIFF_SHIM_HERE) {
  return softdiff_shim::ballot({"__ballot_sync", file, line}, mask, vote != 0);
}
inline int __any_sync(unsigned mask, int vote, SOFTDIFF_SHIM_HERE) {
  return softdiff_shim::ballot({"__any_sync", file, line}, mask, vote != 0) != 0;
}
inline int __all_sync(unsigned mask, int vote, SOFTDIFF_SHIM_HERE) {
  return softdiff_shim::ballot({"__all_sync", file, line}, mask, vote != 0) == 0xffffffffu;
}

namespace softdiff_shim {

// Threads switch only inside collectives, so plain reads and writes are atomic.
template <class T>
T fetch_add(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
T fetch_max(T* address, T value) {
  const T old = *address;
  *address = old < value ? value : old;
  return old;
}

}  // namespace softdiff_shim

inline float atomicAdd(float* address, float value) { return softdiff_shim::fetch_add(address, value); }
inline double atomicAdd(double* address, double value) { return softdiff_shim::fetch_add(address, value); }
inline unsigned atomicAdd(unsigned* address, unsigned value) { return softdiff_shim::fetch_add(address, value); }
inline int atomicAdd(int* address, int value) {
  auto* bits = reinterpret_cast<unsigned*>(address);  // wraps around, as on the device
  return static_cast<int>(softdiff_shim::fetch_add(bits, static_cast<unsigned>(value)));
}
inline unsigned atomicMax(unsigned* address, unsigned value) { return softdiff_shim::fetch_max(address, value); }
inline int atomicMax(int* address, int value) { return softdiff_shim::fetch_max(address, value); }

template <class T>
T __ldg(const T* address) {
  return *address;
}
