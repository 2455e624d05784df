// SPDX-License-Identifier: Apache-2.0
// soft_score_loss and its gradient.
#include "cuda_ops.h"
#include "engines.h"
#include "lines.h"

namespace softdiff::cuda {

// kWithGradient: for square.h's plain kernels.
template <bool kWithGradient>
struct LossOp {
  using Args = SoftScoreLossArgs;
  static constexpr Shift kShift = Shift::filter;
  static constexpr int kSources = 2, kTerms = 1;
  static constexpr bool kMix = false, kEnergy = true, kPlain = kWithGradient, kAdd = false, kNoise = false;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int, int i) const { return i == 0 ? a.prediction : a.target; }
  SOFTDIFF_DEVICE Values values(int b) const {
    Values v = values_of(a.blur_std.at(b), static_cast<float>(a.floor));
    v.identity = 0;
    v.scale = static_cast<float>(2.0 * a.weight.at(b) * a.gradient_scale);
    return v;
  }
  SOFTDIFF_DEVICE bool backward() const { return kWithGradient || a.gradient; }
  SOFTDIFF_DEVICE const Image& result() const { return a.gradient; }
  SOFTDIFF_DEVICE float factor(const Values& v) const { return v.scale; }
  SOFTDIFF_DEVICE float apply(float u, float m, float& energy) const {
    const float masked = u * m;
    energy = fmaf(masked, masked, energy);
    return masked * m;
  }
  SOFTDIFF_DEVICE void finish(const Values& v, int b, int c, int y, int x, int first, int last,
                              float (&value)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] *= v.scale;
    write(Plane(a.gradient, b, c), y, x, first, last, value);
  }
};

using SoftScoreLossOp = LossOp<false>;

namespace {

constexpr int kSumThreads = 128;

// A thread for an image: its few parts in a fixed order, so that the sum is the same every time.
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const __grid_constant__ SoftScoreLossArgs a, const double* parts, int64_t count, float* loss) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (b >= a.shape.b) return;
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += parts[b * count + i];
  loss[b] = static_cast<float>(a.weight.at(b) * sum);
}

}  // namespace

void run(const char* what, const SoftScoreLossArgs& args, const Place& place, const Plan& plan) {
  const OnDevice here(what, args.shape, place.device);
  SoftScoreLossArgs a = args;
  a.plane_loss = place.parts;
  if (plan.engine == Engine::square) {
    if (plain(a.shape, a.prediction) && plain(a.shape, a.target) && plain(a.shape, a.gradient)) {
      launch_square<LossOp<true>>(what, a, place);
    } else {
      launch_square<SoftScoreLossOp>(what, a, place);
    }
  } else if (plan.engine == Engine::small) {
    launch_small<SoftScoreLossOp>(what, a, place, plan.side_h);
  } else {
    CorruptArgs lined;
    lined.shape = a.shape, lined.out = a.gradient;
    lined.blur_std_s = a.blur_std, lined.scale = a.weight, lined.floor = a.floor;
    Lines(what, lined, place, plan).each_chunk([&](const Lines& lines) {
      LineParameters first = lines.first(Stage::forward, a.prediction), masked = lines.masked();
      first.less = a.target;
      lines.rows(first);
      masked.energy = true, masked.backward = static_cast<bool>(a.gradient);
      lines.columns(masked);
      if (!a.gradient) return;
      LineParameters last = lines.last(Stage::inverse);
      last.factor = static_cast<float>(2.0 * a.gradient_scale);
      lines.rows(last);
    });
  }
  launch<&sum_kernel>("soft_score_loss (sum)", a.shape, place, (a.shape.b + kSumThreads - 1) / kSumThreads, kSumThreads,
                      0, a, static_cast<const double*>(place.parts), plan.parts, place.loss);
}

}  // namespace softdiff::cuda
