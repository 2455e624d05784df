// SPDX-License-Identifier: Apache-2.0
// dct2 and idct2.
#include "cuda_ops.h"
#include "engines.h"
#include "lines.h"

namespace softdiff::cuda {

template <Shift kWay>
struct Dct2Op {
  using Args = Dct2Args;
  static constexpr Shift kShift = kWay;
  static constexpr int kSources = 1, kTerms = 1;
  static constexpr bool kMix = false, kMasked = false, kEnergy = false, kPlain = false, kAdd = false, kNoise = false;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int, int) const { return a.in; }
  SOFTDIFF_DEVICE bool backward() const { return true; }
  SOFTDIFF_DEVICE float apply(float u, float, float&) const { return u; }
  SOFTDIFF_DEVICE Values values(int) const { return values_of(0.0, 0.0f); }
  SOFTDIFF_DEVICE void finish(const Values&, int b, int c, int y, int x, int first, int last,
                              float (&value)[4]) const {
    write(Plane(a.out, b, c), y, x, first, last, value);
  }
};

void run(const char* what, const Dct2Args& args, const Place& place, const Plan& plan) {
  using Forward = Dct2Op<Shift::forward>;
  using Inverse = Dct2Op<Shift::inverse>;
  const OnDevice here(what, args.shape, place.device);
  if (plan.engine == Engine::square) {
    return args.inverse ? launch_square<Inverse>(what, args, place) : launch_square<Forward>(what, args, place);
  }
  if (plan.engine == Engine::small) {
    return args.inverse ? launch_small<Inverse>(what, args, place, plan.side_h)
                        : launch_small<Forward>(what, args, place, plan.side_h);
  }
  const Stage stage = args.inverse ? Stage::inverse : Stage::forward;
  CorruptArgs a;
  a.shape = args.shape, a.source = args.in, a.out = args.out;
  Lines(what, a, place, plan).each_chunk([&](const Lines& lines) {
    lines.columns(lines.first(stage, args.in));
    lines.rows(lines.last(stage));
  });
}

}  // namespace softdiff::cuda
