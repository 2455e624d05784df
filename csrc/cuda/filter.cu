// SPDX-License-Identifier: Apache-2.0
// blur, corrupt, reverse_step and momentum_step.
#include "cuda_ops.h"
#include "engines.h"

namespace softdiff::cuda {

void run(const char* what, const FilterArgs& args, const Place& place, const Plan& plan) {
  const OnDevice here(what, args.shape, place.device);
  if (plan.engine == Engine::small) return launch_small<FilterOp>(what, args, place, plan.side_h);
  if (plan.engine == Engine::plane) return launch_plane<FilterOp>(what, args, place);
  if (plan.engine == Engine::cluster) return launch_cluster<FilterOp>(what, args, place);
  Lines<FilterOp>(what, args, place, plan).each_chunk([&](const auto& lines) {
    if (!args.reverse && args.floor == 0.0) {
      // The mask is a product: one axis after the other, each there and back in one pass.
      lines.columns(lines.pass(Stage::filter, 0, false, false));
      lines.rows(lines.pass(Stage::filter, 0, true, true));
      return;
    }
    lines.rows(lines.pass(Stage::forward, 0, false, false));
    LineParameters masked = lines.pass(Stage::filter, 0, true, false);
    masked.whole_mask = true;
    lines.columns(masked);
    lines.rows(lines.pass(Stage::inverse, 0, true, true));
  });
}

}  // namespace softdiff::cuda
