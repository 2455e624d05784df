// SPDX-License-Identifier: Apache-2.0
// spectral_mix.
#include "cuda_ops.h"
#include "engines.h"

namespace softdiff::cuda {

void run(const MixArgs& args, const Place& place, const Plan& plan) {
  const char* what = "spectral_mix";
  const OnDevice here(what, args.shape, place.device);
  if (args.count < 1 || args.count > kMostInputs) {
    throw std::invalid_argument("spectral_mix: the CUDA kernels take 1 to 4 inputs");
  }
  MixParameters a;
  a.shape = args.shape, a.count = static_cast<int>(args.count);
  for (int i = 0; i < a.count; ++i) a.in[i] = args.in[i], a.mask[i] = args.mask[i];
  a.noise_mask = args.noise_mask, a.out = args.out, a.key = args.key;
  if (plan.engine == Engine::small) return launch_small<MixOp>(what, a, place, plan.side_h);
  if (plan.engine == Engine::plane) return launch_plane<MixOp>(what, a, place);
  Lines<MixOp>(what, a, place, plan).each_chunk([&](const auto& lines) {
    for (int i = 0; i < a.count; ++i) {
      lines.rows(lines.pass(Stage::forward, i, false, false));
      lines.columns(lines.pass(Stage::forward, i, true, false));
    }
    LineParameters mixed = lines.pass(Stage::inverse, 0, true, false);
    mixed.mix = true;
    lines.columns(mixed);
    lines.rows(lines.pass(Stage::inverse, 0, true, true));
  });
}

}  // namespace softdiff::cuda
