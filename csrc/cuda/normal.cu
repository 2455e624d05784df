// SPDX-License-Identifier: Apache-2.0
// normal: the noise stream itself.
#include "cuda_ops.h"
#include "launch.h"
#include "noise.h"
#include "pixels.h"

namespace softdiff::cuda {
namespace {

constexpr int kNormalThreads = 256;
constexpr int kBlocksEach = 4;  // of four normals, by each thread

__global__ void __launch_bounds__(kNormalThreads) normal_kernel(const __grid_constant__ NormalArgs a, int64_t per_sample) {
  const int b = static_cast<int>(blockIdx.x / per_sample), part = static_cast<int>(blockIdx.x % per_sample);
  // A thread block's elements as one row, so that a place in it fits 32 bits.
  constexpr int kRow = 4 * kNormalThreads * kBlocksEach;
  Image out = a.out;
  out.stride[2] = kRow;
  const Plane plane(out, b, 0);
  const ImageKey key = key_of(a.key, b);
#pragma unroll 1
  for (int i = 0; i < kBlocksEach; ++i) {
    const int x = 4 * (threadIdx.x + i * kNormalThreads);
    const int64_t e = static_cast<int64_t>(part) * kRow + x, left = a.count - e;
    if (left <= 0) return;
    float z[4];
    normals(key, static_cast<uint32_t>(e >> 2), z);
    write(plane, part, x, 0, left < 4 ? static_cast<int>(left) : 4, z);
  }
}

}  // namespace

void run(const NormalArgs& args, const Place& place) {
  const Shape shape{args.b, 1, 1, args.count};
  const OnDevice here("normal", shape, place.device);
  const int64_t each = 4 * kNormalThreads * kBlocksEach, per_sample = (args.count + each - 1) / each;
  launch<&normal_kernel>("normal", shape, place, args.b * per_sample, kNormalThreads, 0, args, per_sample);
}

}  // namespace softdiff::cuda
