// SPDX-License-Identifier: Apache-2.0
// An op's launches, for each engine.
#pragma once

#include "cluster.h"
#include "launch.h"
#include "lines.h"
#include "plan.h"
#include "plane.h"
#include "small.h"
#include "square.h"

namespace softdiff::cuda {

static_assert(kMostSmall == kSmallSide && kMostPlane == kPlaneSide && kMostCluster == kClusterSide && kMostLines == kLongestLine);

template <class Op, int kN>
void launch_small_of(const char* what, const typename Op::Args& a, const Place& place) {
  using Shape_ = SmallShape<kN>;
  const int h = static_cast<int>(a.shape.h), w = static_cast<int>(a.shape.w), planes = Shape_::planes(h, w);
  const SmallTables tables{static_cast<const float*>(place.table_h), static_cast<const float*>(place.table_w)};
  launch<&small_kernel<Op, kN>>(what, a.shape, place, (a.shape.b * a.shape.c + planes - 1) / planes, kSmallThreads,
                                Shape_::shared(h, w, Op::kMix), a, tables, planes);
}

template <class Op>
void launch_small(const char* what, const typename Op::Args& a, const Place& place, int half) {
  if (half == 4) {
    launch_small_of<Op, 8>(what, a, place);
  } else if (half == 8) {
    launch_small_of<Op, 16>(what, a, place);
  } else {
    launch_small_of<Op, 24>(what, a, place);
  }
}

template <class Op, int N>
void launch_square_of(const char* what, const typename Op::Args& a, const Place& place) {
  using Form = SquareShape<N>;
  const int64_t planes = a.shape.b * a.shape.c, blocks = (planes + Form::kPlanes - 1) / Form::kPlanes;
  const uint32_t count = static_cast<uint32_t>(planes);
  if constexpr (!Op::kMix) {
    launch<&square_kernel<Op, N>>(what, a.shape, place, blocks, Form::kThreads, Form::shared(false), a, count);
  } else if constexpr (N <= kMostMixedSquare) {
    launch<&square_mix_kernel<Op, N>>(what, a.shape, place, blocks, Form::kThreads, Form::shared(true), a, count);
  }
}

template <class Op>
void launch_square(const char* what, const typename Op::Args& a, const Place& place) {
  switch (a.shape.h) {
#define SOFTDIFF_SIDE(N) \
  case N:                \
    return launch_square_of<Op, N>(what, a, place);
    SOFTDIFF_SQUARES(SOFTDIFF_SIDE)
#undef SOFTDIFF_SIDE
  }
}

// Whether an op's images are as square.h's plain kernels want them: float32, contiguous, in whole fours.
inline bool plain(const Shape& s, const Image& image) {
  const int64_t strides[4] = {s.c * s.h * s.w, s.h * s.w, s.w, 1}, sizes[4] = {s.b, s.c, s.h, s.w};
  if (!image || image.dtype != DType::float32 || reinterpret_cast<uintptr_t>(image.data) % 16 != 0) return false;
  for (int i = 0; i < 4; ++i) {
    if (sizes[i] > 1 && image.stride[i] != strides[i]) return false;
  }
  return true;
}

template <class Op, int kTiles>
void launch_plane_of(const char* what, const typename Op::Args& a, const Place& place, const PlaneTables& tables) {
  using Shape_ = PlaneShape<kTiles>;
  launch<&plane_kernel<Op, kTiles>>(what, a.shape, place, a.shape.b * a.shape.c, Shape_::threads(tables.h.tiles),
                                    Shape_::shared(tables.h.tiles), a, tables);
}

inline PlaneTables plane_tables(const Shape& s, const Place& place) {
  return {{static_cast<const uint4*>(place.table_h), tiles_of(s.h)}, {static_cast<const uint4*>(place.table_w), tiles_of(s.w)}};
}

template <class Op>
void launch_plane(const char* what, const typename Op::Args& a, const Place& place) {
  const PlaneTables tables = plane_tables(a.shape, place);
  if (tables.w.tiles == 1) {
    launch_plane_of<Op, 1>(what, a, place, tables);
  } else if (tables.w.tiles == 2) {
    launch_plane_of<Op, 2>(what, a, place, tables);
  } else if constexpr (!Op::kMix) {
    launch_plane_of<Op, 4>(what, a, place, tables);
  }
}

template <class Op>
void launch_cluster(const char* what, const typename Op::Args& a, const Place& place) {
  const PlaneTables tables = plane_tables(a.shape, place);
  launch<&cluster_kernel<Op>, 2>(what, a.shape, place, 2 * a.shape.b * a.shape.c, ClusterShape::threads(tables.h.tiles),
                                 static_cast<size_t>(cluster_bytes(tables.h.tiles, tables.w.tiles)), a, tables);
}

// The passes over one chunk of planes.
template <class Op>
class Lines {
 public:
  Lines(const char* what, const typename Op::Args& a, const Place& place, const Plan& plan)
      : what_(what), a_(a), place_(place), plan_(plan) {}

  template <class Passes>
  void each_chunk(Passes passes) {
    const int64_t planes = a_.shape.b * a_.shape.c;
    for (int64_t first = 0; first < planes; first += plan_.chunk) {
      first_ = static_cast<int>(first);
      count_ = std::min(plan_.chunk, planes - first);
      passes(*this);
    }
  }

  // A pass from the op's source to scratch, from scratch to scratch, or (`last`) from scratch to the op's result.
  LineParameters pass(Stage stage, int64_t input, bool from_scratch, bool last) const {
    LineParameters p;
    p.stage = stage, p.last = last, p.first_plane = first_, p.input = static_cast<int>(input);
    p.row = scratch_row(a_.shape), p.plane = p.row * a_.shape.h, p.inputs = p.plane * plan_.chunk;
    p.from = from_scratch ? place_.scratch + input * p.inputs : nullptr;
    p.to = place_.scratch + input * p.inputs;
    return p;
  }
  void rows(LineParameters p) const { along<false>(p, a_.shape.h, plan_.side_w / 16, place_.table_w); }
  void columns(LineParameters p) const { along<true>(p, a_.shape.w, plan_.side_h / 16, place_.table_h); }

 private:
  template <bool kColumns>
  void along(LineParameters& p, int64_t across, int tiles, const void* table) const {
    p.table = Table{static_cast<const uint4*>(table), tiles};
    p.slabs = static_cast<int>(slabs_of(across, tiles));
    if (lines_of(tiles) == 64) {
      launch_of<kColumns, 4>(p);
    } else if (lines_of(tiles) == 32) {
      launch_of<kColumns, 2>(p);
    } else {
      launch_of<kColumns, 1>(p);
    }
  }
  template <bool kColumns, int kSlab>
  void launch_of(const LineParameters& p) const {
    launch<&lines_kernel<Op, kColumns, kSlab>>(what_, a_.shape, place_, count_ * p.slabs, kLineThreads,
                                               LineShape<kColumns, kSlab>::shared(p.table.tiles), a_, p);
  }

  const char* what_;
  const typename Op::Args& a_;
  const Place& place_;
  const Plan& plan_;
  int first_ = 0;
  int64_t count_ = 0;
};

}  // namespace softdiff::cuda
