// SPDX-License-Identifier: Apache-2.0
// spectral_mix.
#include "cuda_ops.h"
#include "engines.h"
#include "lines.h"

namespace softdiff::cuda {

constexpr int kMostInputs = 4;

// args.h's SpectralMixArgs with its arrays inside, since a kernel's arguments are copied to the device.
struct SpectralMixParameters {
  Shape shape;
  int count = 0;
  Image in[kMostInputs], mask[kMostInputs], noise_mask, noise, out;
  Key key;
};

struct SpectralMixOp {
  using Args = SpectralMixParameters;
  static constexpr Shift kShift = Shift::filter;
  static constexpr int kSources = 1, kTerms = 1;
  static constexpr bool kMix = true, kMasked = true, kEnergy = false, kPlain = false, kAdd = false, kNoise = false;
  const Args& a;

  SOFTDIFF_DEVICE const Image& source(int input, int) const { return a.in[input]; }
  SOFTDIFF_DEVICE bool backward() const { return true; }
  SOFTDIFF_DEVICE float apply(float u, float m, float&) const { return u * m; }
  SOFTDIFF_DEVICE Values values(int) const { return values_of(0.0, 0.0f); }
  SOFTDIFF_DEVICE float mask(int input, int b, int c, int k, int l) const {
    return read_one(a.mask[input], b, c, k, l);
  }
  // Four neighbours, of which `last` are there, for square.h.
  SOFTDIFF_DEVICE void mask(int input, int b, int c, int k, int l, int last, float (&m)[4]) const {
    read(Plane(a.mask[input], b, c), k, l, 0, last, m);
  }
  SOFTDIFF_DEVICE void noise(int b, int c, int k, int l, int last, float (&z)[4]) const {
    float m[4];
    unmasked_noise(b, c, k, l, last, z);
    read(Plane(a.noise_mask, b, c), k, l, 0, last, m);
#pragma unroll
    for (int i = 0; i < 4; ++i) z[i] *= m[i];
  }
  SOFTDIFF_DEVICE void unmasked_noise(int b, int c, int k, int l, int last, float (&z)[4]) const {
    if (a.noise) {
      read(Plane(a.noise, b, c), k, l, 0, last, z);
    } else {
      normals_at(key_of(a.key, b), element(a.shape, c, k, l), z);
    }
  }
  SOFTDIFF_DEVICE bool noisy() const { return a.noise_mask && (a.noise || a.key.present); }
  SOFTDIFF_DEVICE float noise(int b, int c, int k, int l) const {
    const float m = read_one(a.noise_mask, b, c, k, l);
    if (a.noise) return m * read_one(a.noise, b, c, k, l);
    float z[4];
    const int64_t e = element(a.shape, c, k, l);
    normals(key_of(a.key, b), static_cast<uint32_t>(e >> 2), z);
    const float low = (e & 1) != 0 ? z[1] : z[0], high = (e & 1) != 0 ? z[3] : z[2];
    return m * ((e & 2) != 0 ? high : low);
  }
  SOFTDIFF_DEVICE void finish(const Values&, int b, int c, int y, int x, int first, int last,
                              float (&value)[4]) const {
    write(Plane(a.out, b, c), y, x, first, last, value);
  }
};

namespace {

constexpr int kMixThreads = 256, kMixRows = 8;

// The sum of all inputs' masked spectra, and of masked noise, in the first one's place: 8 rows of a plane a block. Spectra
// follow one another by `inputs` floats.
__global__ void __launch_bounds__(kMixThreads)
    mix_kernel(const __grid_constant__ SpectralMixParameters a, const __grid_constant__ Image spectrum, int64_t inputs, int first_plane,
               int slabs) {
  const int channels = static_cast<int>(a.shape.c), plane = first_plane + static_cast<int>(blockIdx.x) / slabs;
  const int b = plane / channels, c = plane % channels, w = static_cast<int>(a.shape.w), across = (w + 3) / 4;
  const int first = static_cast<int>(blockIdx.x) % slabs * kMixRows, rows = min(static_cast<int>(a.shape.h) - first, kMixRows);
  const bool noisy = SpectralMixOp{a}.noisy();
  for (int item = threadIdx.x; item < rows * across; item += kMixThreads) {
    const int y = first + item / across, x = item % across * 4, last = min(w - x, 4);
    float sum[4] = {}, v[4], m[4];
    const auto add = [&](const Image& mask) {
      read(Plane(mask, b, c), y, x, 0, last, m);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[e] = fmaf(m[e], v[e], sum[e]);
    };
    Image of = spectrum;
    for (int input = 0; input < a.count; ++input) {
      read(Plane(of, b, c), y, x, 0, last, v);
      add(a.mask[input]);
      of.data = static_cast<float*>(of.data) + inputs;
    }
    if (noisy) {
      SpectralMixOp{a}.unmasked_noise(b, c, y, x, last, v);
      add(a.noise_mask);
    }
    write(Plane(spectrum, b, c), y, x, 0, last, sum);
  }
}

}  // namespace

void run(const char* what, const SpectralMixArgs& args, const Place& place, const Plan& plan) {
  const OnDevice here(what, args.shape, place.device);
  if (args.count < 1 || args.count > kMostInputs) {
    throw std::invalid_argument("spectral_mix: the CUDA kernels take 1 to 4 inputs");
  }
  SpectralMixParameters a;
  a.shape = args.shape, a.count = static_cast<int>(args.count);
  for (int i = 0; i < a.count; ++i) a.in[i] = args.in[i], a.mask[i] = args.mask[i];
  a.noise_mask = args.noise_mask, a.noise = args.noise, a.out = args.out, a.key = args.key;
  if (plan.engine == Engine::square) return launch_square<SpectralMixOp>(what, a, place);
  if (plan.engine == Engine::small) return launch_small<SpectralMixOp>(what, a, place, plan.side_h);
  CorruptArgs lined;
  lined.shape = a.shape, lined.out = a.out;
  const int slabs = static_cast<int>((a.shape.h + kMixRows - 1) / kMixRows);
  Lines(what, lined, place, plan).each_chunk([&](const Lines& lines) {
    for (int i = 0; i < a.count; ++i) {
      lines.rows(lines.first(Stage::forward, a.in[i], i));
      lines.columns(lines.pass(Stage::forward, i));
    }
    launch<&mix_kernel>("spectral_mix (mix)", a.shape, place, lines.planes() * slabs, kMixThreads, 0, a, lines.scratch(0),
                        lines.inputs(), lines.first_plane(), slabs);
    lines.columns(lines.pass(Stage::inverse));
    lines.rows(lines.last(Stage::inverse));
  });
}

}  // namespace softdiff::cuda
