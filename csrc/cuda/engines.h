// SPDX-License-Identifier: Apache-2.0
// An op's launches, for each engine.
#pragma once

#include "cluster.h"
#include "launch.h"
#include "plan.h"
#include "plane.h"
#include "small.h"

namespace softdiff::cuda {

static_assert(kMostSmall == kSmallSide && kMostPlane == kPlaneSide && kMostCluster == kClusterSide);

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

}  // namespace softdiff::cuda
