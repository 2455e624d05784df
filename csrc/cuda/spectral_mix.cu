// SPDX-License-Identifier: Apache-2.0
// spectral_mix.
#include "cuda_ops.h"
#include "engines.h"

namespace softdiff::cuda {

constexpr int kMostInputs = 4;

// args.h's SpectralMixArgs with its arrays inside, since a kernel's arguments are copied to the device.
struct SpectralMixParameters {
  Shape shape;
  int count = 0;
  Image in[kMostInputs], mask[kMostInputs], noise_mask, out;
  Key key;
};

struct SpectralMixOp {
  using Args = SpectralMixParameters;
  static constexpr Shift kShift = Shift::filter;
  static constexpr int kSources = 1, kTerms = 1;
  static constexpr bool kMix = true, kEnergy = false, kPlain = false;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int input, int) const { return a.in[input]; }
  SOFTDIFF_DEVICE bool backward() const { return true; }
  SOFTDIFF_DEVICE float apply(float u, float m, float&) const { return u * m; }
  SOFTDIFF_DEVICE Values values(int) const { return values_of(0.0, 0.0f); }
  SOFTDIFF_DEVICE float mask(int input, int b, int c, int k, int l) const {
    return one(a.mask[input], b, c, k, l);
  }
  // Four neighbours, of which `last` are there, for square.h.
  SOFTDIFF_DEVICE void mask(int input, int b, int c, int k, int l, int last, float (&m)[4]) const {
    read(Plane(a.mask[input], b, c), k, l, 0, last, m);
  }
  SOFTDIFF_DEVICE void noise(int b, int c, int k, int l, int last, float (&z)[4]) const {
    float m[4];
    read(Plane(a.noise_mask, b, c), k, l, 0, last, m);
    normals_at(key_of(a.key, b), element(a.shape, c, k, l), z);
#pragma unroll
    for (int i = 0; i < 4; ++i) z[i] *= m[i];
  }
  SOFTDIFF_DEVICE bool noisy() const { return a.noise_mask && a.key.present; }
  SOFTDIFF_DEVICE float noise(int b, int c, int k, int l) const {
    float z[4];
    const int64_t e = element(a.shape, c, k, l);
    normals(key_of(a.key, b), static_cast<uint32_t>(e >> 2), z);
    const float low = (e & 1) != 0 ? z[1] : z[0], high = (e & 1) != 0 ? z[3] : z[2];
    return one(a.noise_mask, b, c, k, l) * ((e & 2) != 0 ? high : low);
  }
  SOFTDIFF_DEVICE void finish(const Values&, int b, int c, int y, int x, int first, int last,
                              float (&value)[4]) const {
    write(Plane(a.out, b, c), y, x, first, last, value);
  }

 private:
  SOFTDIFF_DEVICE static float one(const Image& image, int b, int c, int k, int l) {
    float x[4];
    read(Plane(image, b, c), k, l, 0, 1, x);
    return x[0];
  }
};

void run(const char* what, const SpectralMixArgs& args, const Place& place, const Plan& plan) {
  const OnDevice here(what, args.shape, place.device);
  if (args.count < 1 || args.count > kMostInputs) {
    throw std::invalid_argument("spectral_mix: the CUDA kernels take 1 to 4 inputs");
  }
  SpectralMixParameters a;
  a.shape = args.shape, a.count = static_cast<int>(args.count);
  for (int i = 0; i < a.count; ++i) a.in[i] = args.in[i], a.mask[i] = args.mask[i];
  a.noise_mask = args.noise_mask, a.out = args.out, a.key = args.key;
  if (plan.engine == Engine::square) return launch_square<SpectralMixOp>(what, a, place);
  if (plan.engine == Engine::small) return launch_small<SpectralMixOp>(what, a, place, plan.side_h);
  if (plan.engine == Engine::plane) return launch_plane<SpectralMixOp>(what, a, place);
  Lines<SpectralMixOp>(what, a, place, plan).each_chunk([&](const auto& lines) {
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
