// SPDX-License-Identifier: Apache-2.0
// corrupt; blur, which is corrupt without noise; and step (reverse_step, momentum_step), which is corrupt with the
// mask of two blurs and a second image. args.h says how.
#include "corrupt_op.h"
#include "cuda_ops.h"
#include "engines.h"
#include "lines.h"

namespace softdiff::cuda {

// For square.h: steps, or blur and corrupt, with noise from a key or none.
template <bool kStep, bool kDraw>
struct PlainCorruptOp {
  using Args = CorruptArgs;
  static constexpr Shift kShift = Shift::filter;
  static constexpr int kSources = 1, kTerms = kStep ? 2 : 1;
  static constexpr bool kMix = false, kMasked = false, kEnergy = false, kPlain = true, kAdd = kStep, kNoise = kDraw;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int, int) const { return a.source; }
  SOFTDIFF_DEVICE const Image& add() const { return a.add; }
  SOFTDIFF_DEVICE const Image& result() const { return a.out; }
  SOFTDIFF_DEVICE Values values(int b) const { return kStep ? step_values(a, b) : corrupt_values(a, b); }
  SOFTDIFF_DEVICE float factor(const Values& v) const { return !kStep ? v.scale : v.identity ? v.one_minus_keep : 1.0f; }
  SOFTDIFF_DEVICE bool backward() const { return true; }
  SOFTDIFF_DEVICE float apply(float u, float m, float&) const { return u * m; }
};

namespace {

void run_square(const char* what, const CorruptArgs& a, const Place& place) {
  const Shape& s = a.shape;
  const bool usual = plain(s, a.source) && plain(s, a.out) && !a.residual && !a.noise && a.key.rows == nullptr;
  if (usual && !a.reverse) {
    return a.key.present ? launch_square<PlainCorruptOp<false, true>>(what, a, place)
                         : launch_square<PlainCorruptOp<false, false>>(what, a, place);
  }
  if (usual && plain(s, a.add)) {
    return a.key.present ? launch_square<PlainCorruptOp<true, true>>(what, a, place)
                         : launch_square<PlainCorruptOp<true, false>>(what, a, place);
  }
  launch_square<CorruptOp>(what, a, place);
}

}  // namespace

void run(const char* what, const CorruptArgs& args, const Place& place, const Plan& plan) {
  const OnDevice here(what, args.shape, place.device);
  if (plan.engine == Engine::square) return run_square(what, args, place);
  if (plan.engine == Engine::small) return launch_small<CorruptOp>(what, args, place, plan.side_h);
  Lines(what, args, place, plan).each_chunk([&](const Lines& lines) {
    if (!args.reverse && args.floor == 0.0) {
      // The mask is a product: one axis after the other, each there and back in one pass.
      lines.columns(lines.first(Stage::filter, args.source));
      lines.rows(lines.last(Stage::filter, true));
      return;
    }
    lines.rows(lines.first(Stage::forward, args.source));
    lines.columns(lines.masked());
    lines.rows(lines.last(Stage::inverse, true));
  });
}

}  // namespace softdiff::cuda
