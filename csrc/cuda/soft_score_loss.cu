// SPDX-License-Identifier: Apache-2.0
// soft_score_loss and its gradient; the sum of both losses.
#include "loss.h"

namespace softdiff::cuda {
namespace {

constexpr int kSumThreads = 128;

// A thread for an image: its few parts in a fixed order, so that the sum is the same every time.
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(int64_t batch, const __grid_constant__ Coefficient weight, const double* parts, int64_t count, float* loss) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (b >= batch) return;
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += parts[b * count + i];
  loss[b] = static_cast<float>(weight.at(b) * sum);
}

}  // namespace

void add_parts(const char* what, const Shape& shape, const Coefficient& weight, const Place& place, const Plan& plan) {
  launch<&sum_kernel>(what, shape, place, (shape.b + kSumThreads - 1) / kSumThreads, kSumThreads, 0, shape.b, weight,
                      static_cast<const double*>(place.parts), plan.parts, place.loss);
}

void run_square(const char* what, const SoftScoreLossArgs& a, const Place& place) {
  if (plain(a.shape, a.prediction) && plain(a.shape, a.target) && plain(a.shape, a.gradient)) {
    launch_square<LossOp<SoftScoreLossArgs, true>>(what, a, place);
  } else {
    launch_square<LossOp<SoftScoreLossArgs, false>>(what, a, place);
  }
}

void filter_columns(const Lines& lines, const SoftScoreLossArgs& a, const Place&, const Plan&) {
  LineParameters masked = lines.masked();
  masked.energy = true, masked.backward = static_cast<bool>(a.gradient);
  lines.columns(masked);
}

void run(const char* what, const SoftScoreLossArgs& args, const Place& place, const Plan& plan) {
  run_loss(what, args, place, plan);
}

}  // namespace softdiff::cuda
