// SPDX-License-Identifier: Apache-2.0
// dct2 and idct2.
#include "cuda_ops.h"
#include "engines.h"

namespace softdiff::cuda {

void run(const TransformArgs& args, const Place& place, const Plan& plan) {
  using Forward = TransformOp<Shift::forward>;
  using Inverse = TransformOp<Shift::inverse>;
  const char* what = args.inverse ? "idct2" : "dct2";
  const OnDevice here(what, args.shape, place.device);
  if (plan.engine == Engine::small) {
    return args.inverse ? launch_small<Inverse>(what, args, place, plan.side_h)
                        : launch_small<Forward>(what, args, place, plan.side_h);
  }
  if (plan.engine == Engine::plane) {
    return args.inverse ? launch_plane<Inverse>(what, args, place) : launch_plane<Forward>(what, args, place);
  }
  if (plan.engine == Engine::cluster) {
    return args.inverse ? launch_cluster<Inverse>(what, args, place) : launch_cluster<Forward>(what, args, place);
  }
  const Stage stage = args.inverse ? Stage::inverse : Stage::forward;
  Lines<Forward>(what, args, place, plan).each_chunk([&](const auto& lines) {
    lines.columns(lines.pass(stage, 0, false, false));
    lines.rows(lines.pass(stage, 0, true, true));
  });
}

}  // namespace softdiff::cuda
