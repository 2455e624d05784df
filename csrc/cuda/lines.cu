// SPDX-License-Identifier: Apache-2.0
// The kernels of lines.h: for each axis, one for each length of a codelet and one for all other lengths.
#include "lines.h"

#include "launch.h"
#include "line_dense.h"
#include "line_fast.h"

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
  p.across = kColumns ? p.lines / 4 : axis.codelet != 0 ? n / 8 : (n + 3) / 4;
  p.reciprocal = static_cast<uint32_t>(((int64_t{1} << 32) + p.across - 1) / p.across);
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
