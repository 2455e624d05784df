// SPDX-License-Identifier: Apache-2.0
// corrupt; blur, which is corrupt without noise; and step (reverse_step, momentum_step), which is corrupt with the
// mask of two blurs and a second image. args.h says how.
#include "corrupt_op.h"
#include "cuda_ops.h"
#include "engines.h"
#include "lines.h"

namespace softdiff::cuda {

void run(const char* what, const CorruptArgs& args, const Place& place, const Plan& plan) {
  const OnDevice here(what, args.shape, place.device);
  if (plan.engine == Engine::small) return launch_small<CorruptOp>(what, args, place, plan.side_h);
  if (plan.engine == Engine::plane) return launch_plane<CorruptOp>(what, args, place);
  if (plan.engine == Engine::cluster) return launch_cluster<CorruptOp>(what, args, place);
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
