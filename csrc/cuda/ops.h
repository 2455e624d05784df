// SPDX-License-Identifier: Apache-2.0
// What the engines (small.h, square.h, lines.h) know of an op. They are templates over a struct Op, which
// each op's .cu file defines:
//
//   Args              the kernel's argument: args.h's struct, or one with its arrays inside
//   kShift            a filter (DCT2, mask, IDCT2), or one of the transforms alone
//   kSources          1, or 2: the transform is of their difference
//   kMix              several inputs (spectral_mix)
//   kMasked           masks from memory instead of gains: of one input `mask()`, and `mask(b, c, k, l)` at a frequency
//   kEnergy           `apply` adds up the energy of what the mask leaves, for `a.plane_loss`
//   source(i, j)      source j of input i
//   values(b)         what sample b's coefficients come to (gains.h)
//   backward()        whether the inverse transform and `finish` follow the mask
//   apply(u, m, e)    a number of the spectrum by its mask
//   finish(...)       writes four neighbouring results of row y from x on, of which [first, last) are real
#pragma once

#include "gains.h"
#include "noise.h"
#include "pixels.h"

#define SOFTDIFF_ISA cuda
#ifdef SOFTDIFF_CUDA_SHIM
#define SD_INLINE inline  // forced, it would take a host compiler minutes
#else
#define SD_INLINE __host__ __device__ __forceinline__  // tables in memory are made by the host's compiler
#endif
#ifdef __CUDA_ARCH__
#define SD_UNROLL _Pragma("unroll")
#else
#define SD_UNROLL  // a host compiler does not know it
#endif
#include "../dct_small.h"

namespace softdiff::cuda {

// `Places` of a codelet in memory, for indices that the compiler does not know.
template <int N>
struct PlaceTable {
  uint8_t two[N] = {}, four[N] = {};
  SD_INLINE constexpr PlaceTable() {
    constexpr Places<N> place{};
    for (int k = 0; k < N; ++k) two[k] = static_cast<uint8_t>(place.two[k]), four[k] = static_cast<uint8_t>(place.four[k]);
  }
};
template <int N>
__device__ const PlaceTable<N> place_table{};

enum class Shift { filter, forward, inverse };

SOFTDIFF_DEVICE int64_t element(const Shape& s, int c, int y, int x) { return (static_cast<int64_t>(c) * s.h + y) * s.w + x; }

}  // namespace softdiff::cuda
