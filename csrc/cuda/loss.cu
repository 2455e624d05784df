// SPDX-License-Identifier: Apache-2.0
// soft_score_loss and its gradient.
#include "cuda_ops.h"
#include "engines.h"

namespace softdiff::cuda {
namespace {

constexpr int kSumThreads = 128;

// One warp for an image: its parts in a fixed order, so that the sum is the same every time.
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const __grid_constant__ LossArgs a, const double* parts, int64_t count, float* loss) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * (kSumThreads / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  double sum = 0.0;
  if (b < a.shape.b) {
    for (int64_t i = lane; i < count; i += 32) sum += parts[b * count + i];
  }
  // Two words of each double, since shuffles are of 32 bits.
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, i);
  if (lane == 0 && b < a.shape.b) loss[b] = static_cast<float>(a.weight.at(b) * sum);
}

}  // namespace

void run(const LossArgs& args, const Place& place, const Plan& plan, float* loss) {
  const char* what = "soft_score_loss";
  const OnDevice here(what, args.shape, place.device);
  LossArgs a = args;
  a.plane_loss = place.parts;
  if (plan.engine == Engine::small) {
    launch_small<LossOp>(what, a, place, plan.side_h);
  } else if (plan.engine == Engine::plane) {
    launch_plane<LossOp>(what, a, place);
  } else {
    Lines<LossOp>(what, a, place, plan).each_chunk([&](const auto& lines) {
      lines.rows(lines.pass(Stage::forward, 0, false, false));
      LineParameters masked = lines.pass(Stage::filter, 0, true, false);
      masked.whole_mask = true;
      lines.columns(masked);
      if (a.gradient) lines.rows(lines.pass(Stage::inverse, 0, true, true));
    });
  }
  const int images = kSumThreads / 32;
  launch<&sum_kernel>("soft_score_loss (sum)", a.shape, place, (a.shape.b + images - 1) / images, kSumThreads, 0, a,
                      static_cast<const double*>(place.parts), plan.parts, loss);
}

}  // namespace softdiff::cuda
