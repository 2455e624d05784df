// SPDX-License-Identifier: Apache-2.0
// The kernels of lines.h: for each axis, one for each length of a codelet and one for all other lengths.
#include "lines.h"

#include "launch.h"
#include "line_dense.h"
#include "line_fast.h"

#include <cmath>

namespace softdiff::cuda {
namespace {

template <bool kColumns, int kLength>
void launch_fast(const char* what, const CorruptArgs& a, const Place& place, int64_t blocks, int n, const LineParameters& p) {
  launch<&fast_lines_kernel<kColumns, kLength>>(what, a.shape, place, blocks, fast_lines_threads(p.levels),
                                                fast_lines_shared<kColumns>(n, p.lines), a, p);
}

template <bool kColumns>
void along(const char* what, const CorruptArgs& a, const Place& place, int64_t planes, LineParameters p) {
  const int n = static_cast<int>(kColumns ? a.shape.h : a.shape.w);
  const int64_t others = kColumns ? a.shape.w : a.shape.h;
  const LineAxis axis = line_axis(n);
  p.lines = axis.lines(), p.levels = axis.levels, p.slabs = static_cast<int>(axis.slabs(others));
  p.parts = place.parts;
  p.table = static_cast<const float*>(kColumns ? place.table_h : place.table_w);
  p.side = axis.side(n);
  p.across = kColumns ? p.lines / 4 : axis.codelet != 0 ? n / 8 : std::max(2, (n + 3) / 4);
  p.reciprocal = static_cast<uint32_t>(((int64_t{1} << 32) + p.across - 1) / p.across);
  p.plain_from = is_plain(p.from, a.shape) && (!p.less || is_plain(p.less, a.shape));
  if (p.last) {
    // Whole fours of noise, and places that are the same in all images.
    const auto usual = [&](const Image& image) { return is_plain(image, a.shape) && image.stride[2] == a.shape.w; };
    p.to = a.out;
    p.plain_to = usual(a.out) && (!a.add || usual(a.add)) && !a.residual && !a.noise && a.shape.h * a.shape.w % 4 == 0;
  } else {
    p.plain_to = true;
  }
  constexpr double kPi = 3.14159265358979323846;
  p.unit = static_cast<float>(kPi / static_cast<double>(n)), p.unit_across = static_cast<float>(kPi / static_cast<double>(others));
  const bool squared = p.stage == Stage::filter && !p.energy;
  for (int i = 0; i < 2; ++i) {
    const double square = (i + 1.0) / n;
    p.norm[i] = static_cast<float>(squared ? square : std::sqrt(square));
  }
  if (axis.codelet == 0) {
    // The table's rounding of the mean's frequency has one sign for all pixels: taken back from its gain.
    const double rounded = static_cast<float>(std::sqrt(1.0 / n));
    p.norm[0] = squared ? static_cast<float>(1.0 / n / (rounded * rounded)) : 1.0f;
  }
  const int64_t blocks = planes * p.slabs;
  switch (axis.codelet) {
    case 64: return launch_fast<kColumns, 64>(what, a, place, blocks, n, p);
    case 80: return launch_fast<kColumns, 80>(what, a, place, blocks, n, p);
    case 96: return launch_fast<kColumns, 96>(what, a, place, blocks, n, p);
    case 112: return launch_fast<kColumns, 112>(what, a, place, blocks, n, p);
    case 128: return launch_fast<kColumns, 128>(what, a, place, blocks, n, p);
    default:
      launch<&dense_lines_kernel<kColumns>>(what, a.shape, place, blocks, kDenseThreads, dense_lines_shared(p.side), a, p);
  }
}

}  // namespace

void launch_lines(bool columns, const char* what, const CorruptArgs& a, const Place& place, int64_t planes, LineParameters p) {
  columns ? along<true>(what, a, place, planes, p) : along<false>(what, a, place, planes, p);
}

}  // namespace softdiff::cuda
