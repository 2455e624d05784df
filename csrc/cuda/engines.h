// SPDX-License-Identifier: Apache-2.0
// An op's launches, for each engine.
#pragma once

#include "launch.h"
#include "plan.h"
#include "small.h"
#include "square.h"

namespace softdiff::cuda {

static_assert(kMostSmall == kSmallSide);

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

}  // namespace softdiff::cuda
