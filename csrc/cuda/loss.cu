// SPDX-License-Identifier: Apache-2.0
// soft_score_loss and its gradient.
#include "cuda_ops.h"
#include "engines.h"

namespace softdiff::cuda {
namespace {

constexpr int kSumThreads = 128;

// A thread for an image: its few parts in a fixed order, so that the sum is the same every time.
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const __grid_constant__ LossArgs a, const double* parts, int64_t count, float* loss) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (b >= a.shape.b) return;
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += parts[b * count + i];
  loss[b] = static_cast<float>(a.weight.at(b) * sum);
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
  } else if (plan.engine == Engine::cluster) {
    launch_cluster<LossOp>(what, a, place);
  } else {
    Lines<LossOp>(what, a, place, plan).each_chunk([&](const auto& lines) {
      lines.rows(lines.pass(Stage::forward, 0, false, false));
      LineParameters masked = lines.pass(Stage::filter, 0, true, false);
      masked.whole_mask = true;
      lines.columns(masked);
      if (a.gradient) lines.rows(lines.pass(Stage::inverse, 0, true, true));
    });
  }
  launch<&sum_kernel>("soft_score_loss (sum)", a.shape, place, (a.shape.b + kSumThreads - 1) / kSumThreads, kSumThreads,
                      0, a, static_cast<const double*>(place.parts), plan.parts, loss);
}

}  // namespace softdiff::cuda
