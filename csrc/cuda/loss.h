// SPDX-License-Identifier: Apache-2.0
// soft_score_loss and spectral_loss, each with its gradient: the same but for where the mask comes from, a sample's gains or
// memory.
#pragma once

#include "cuda_ops.h"
#include "engines.h"
#include "lines.h"

#include <type_traits>

namespace softdiff::cuda {

// kWithGradient: for square.h's plain kernels.
template <class LossArgs, bool kWithGradient>
struct LossOp {
  using Args = LossArgs;
  static constexpr Shift kShift = Shift::filter;
  static constexpr int kSources = 2, kTerms = 1;
  static constexpr bool kMix = false, kMasked = std::is_same_v<Args, SpectralLossArgs>, kEnergy = true;
  static constexpr bool kPlain = kWithGradient, kAdd = false, kNoise = false;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int, int i) const { return i == 0 ? a.prediction : a.target; }
  SOFTDIFF_DEVICE const Image& mask() const { return a.mask; }
  SOFTDIFF_DEVICE float mask(int b, int c, int k, int l) const { return read_one(a.mask, b, c, k, l); }
  SOFTDIFF_DEVICE Values values(int b) const {
    Values v = values_of(0.0, 0.0f);
    if constexpr (!kMasked) v = values_of(a.blur_std.at(b), static_cast<float>(a.floor));
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

// The parts of the loss, and the gradient, of square.h's planes: in each op's file.
void run_square(const char* what, const SoftScoreLossArgs& a, const Place& place);
void run_square(const char* what, const SpectralLossArgs& a, const Place& place);

// Of lines.h, after the pass along rows: forth along columns, the mask with its energies and, for the gradient, back.
void filter_columns(const Lines& lines, const SoftScoreLossArgs& a, const Place& place, const Plan& plan);
void filter_columns(const Lines& lines, const SpectralLossArgs& a, const Place& place, const Plan& plan);

// The loss of each image, of the parts that the other kernels left: in soft_score_loss.cu.
void add_parts(const char* what, const Shape& shape, const Coefficient& weight, const Place& place, const Plan& plan);

template <class Args>
void run_loss(const char* what, const Args& args, const Place& place, const Plan& plan) {
  using Op = LossOp<Args, false>;
  const OnDevice here(what, args.shape, place.device);
  Args a = args;
  a.plane_loss = place.parts;
  if (plan.engine == Engine::square) {
    run_square(what, a, place);
  } else if (plan.engine == Engine::small) {
    launch_small<Op>(what, a, place, plan.side_h);
  } else {
    CorruptArgs lined;
    lined.shape = a.shape, lined.out = a.gradient, lined.scale = a.weight;
    if constexpr (!Op::kMasked) lined.blur_std_s = a.blur_std, lined.floor = a.floor;
    Lines(what, lined, place, plan).each_chunk([&](const Lines& lines) {
      LineParameters first = lines.first(Stage::forward, a.prediction);
      first.less = a.target;
      lines.rows(first);
      filter_columns(lines, a, place, plan);
      if (!a.gradient) return;
      LineParameters last = lines.last(Stage::inverse);
      last.factor = static_cast<float>(2.0 * a.gradient_scale);
      lines.rows(last);
    });
  }
  add_parts(what, a.shape, a.weight, place, plan);
}

}  // namespace softdiff::cuda
