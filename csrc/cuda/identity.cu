// SPDX-License-Identifier: Apache-2.0
// template: copy this for a new op. identity: copies planes, four neighbours at a time, through float32. (An op between
// a DCT and its inverse is a struct for the engines instead, as in dct2.cu; ops.h says what it needs.)
#include "cuda_ops.h"
#include "launch.h"
#include "pixels.h"

namespace softdiff::cuda {
namespace {

constexpr int kIdentityThreads = 256;

// A block takes one plane.
__global__ void __launch_bounds__(kIdentityThreads) identity_kernel(const __grid_constant__ IdentityArgs a) {
  const int channels = static_cast<int>(a.shape.c), width = static_cast<int>(a.shape.w);
  const int b = static_cast<int>(blockIdx.x) / channels, c = static_cast<int>(blockIdx.x) % channels;
  const Plane in(a.in, b, c), out(a.out, b, c);
  const int across = (width + 3) / 4, count = across * static_cast<int>(a.shape.h);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kIdentityThreads) {
    const int y = i / across, x = 4 * (i % across), last = width - x < 4 ? width - x : 4;
    float value[4];
    read(in, y, x, 0, last, value);
    write(out, y, x, 0, last, value);
  }
}

}  // namespace

void run(const char* what, const IdentityArgs& args, const Place& place, const Plan&) {
  const OnDevice here(what, args.shape, place.device);
  launch<&identity_kernel>(what, args.shape, place, args.shape.b * args.shape.c, kIdentityThreads, 0, args);
}

}  // namespace softdiff::cuda
