// SPDX-License-Identifier: Apache-2.0
// spectral_loss and its gradient.
#include "loss.h"

namespace softdiff::cuda {
namespace {

constexpr int kMaskThreads = 256;

// A spectrum in scratch by the mask's square, and the energy of what the mask leaves: some rows of a plane a block, as many
// blocks as lines.h's along columns, which leave as many parts of the loss.
__global__ void __launch_bounds__(kMaskThreads)
    mask_kernel(const __grid_constant__ SpectralLossArgs a, const __grid_constant__ Image spectrum, double* parts, int first_plane,
                int slabs) {
  const int channels = static_cast<int>(a.shape.c), plane = first_plane + static_cast<int>(blockIdx.x) / slabs;
  const int b = plane / channels, c = plane % channels, h = static_cast<int>(a.shape.h), w = static_cast<int>(a.shape.w);
  const int slab = static_cast<int>(blockIdx.x) % slabs, first = h * slab / slabs, rows = h * (slab + 1) / slabs - first;
  const int across = (w + 3) / 4;
  Arena arena;
  float* energies = arena.take<float>(kMaskThreads / 32);
  float energy = 0.0f;
  for (int item = threadIdx.x; item < rows * across; item += kMaskThreads) {
    const int y = first + item / across, x = item % across * 4, last = min(w - x, 4);
    float v[4], m[4];
    read(Plane(spectrum, b, c), y, x, 0, last, v);
    read(Plane(a.mask, b, c), y, x, 0, last, m);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      v[e] *= m[e];
      energy = fmaf(v[e], v[e], energy);
      v[e] *= m[e];
    }
    if (a.gradient) write(Plane(spectrum, b, c), y, x, 0, last, v);
  }
  energy = warp_sum(energy);
  if (threadIdx.x % 32 == 0) energies[threadIdx.x / 32] = energy;
  __syncthreads();
  if (threadIdx.x == 0) parts[blockIdx.x + static_cast<int64_t>(first_plane) * slabs] = block_sum(energies);
}

}  // namespace

// No plain kernels: by their machine code they would take 7 % fewer instructions at 64 px, and as long to compile.
void run_square(const char* what, const SpectralLossArgs& a, const Place& place) {
  launch_square<LossOp<SpectralLossArgs, false>>(what, a, place);
}

void filter_columns(const Lines& lines, const SpectralLossArgs& a, const Place& place, const Plan& plan) {
  const int slabs = static_cast<int>(plan.parts / a.shape.c);
  lines.columns(lines.pass(Stage::forward));
  launch<&mask_kernel>("spectral_loss (mask)", a.shape, place, lines.planes() * slabs, kMaskThreads,
                       room<float>(kMaskThreads / 32), a, lines.scratch(0), place.parts, lines.first_plane(), slabs);
  if (a.gradient) lines.columns(lines.pass(Stage::inverse));
}

void run(const char* what, const SpectralLossArgs& args, const Place& place, const Plan& plan) {
  run_loss(what, args, place, plan);
}

}  // namespace softdiff::cuda
