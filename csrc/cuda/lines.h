// SPDX-License-Identifier: Apache-2.0
// Passes along one axis of planes that no block holds. Passes hand over through float32 scratch that the launch keeps small
// enough for the L2 cache.
//
//   blur, corrupt:        filter columns -> filter rows, finish
//   steps, loss:          transform rows -> transform columns, mask, back -> rows back, finish
//   spectral_loss:        transform rows -> columns -> mask -> columns back -> rows back
//   spectral_mix:         transform rows -> columns, for each input -> mix -> columns back -> rows back
//   dct2, idct2:          columns -> rows
//
// Every op comes as CorruptArgs, which says what the mask is and what the last pass does: the kernels are the same for all.
#pragma once

#include "cuda_ops.h"
#include "line_pass.h"

namespace softdiff::cuda {

// In lines.cu: along columns or along rows.
void launch_lines(bool columns, const char* what, const CorruptArgs& a, const Place& place, int64_t planes, LineParameters p);

// The passes over one chunk of planes.
class Lines {
 public:
  Lines(const char* what, const CorruptArgs& a, const Place& place, const Plan& plan)
      : what_(what), a_(a), place_(place), plan_(plan), row_(scratch_row(a.shape)), plane_(row_ * a.shape.h) {}

  template <class Passes>
  void each_chunk(Passes passes) {
    const int64_t planes = a_.shape.b * a_.shape.c;
    for (first_ = 0; first_ < planes; first_ += plan_.chunk) {
      count_ = std::min(plan_.chunk, planes - first_);
      passes(*this);
    }
  }

  // From scratch to scratch: that of an input, where there are several.
  LineParameters pass(Stage stage, int64_t input = 0) const {
    LineParameters p;
    p.stage = stage, p.first_plane = static_cast<int>(first_);
    p.from = p.to = scratch(input);
    return p;
  }
  LineParameters first(Stage stage, const Image& from, int64_t input = 0) const {
    LineParameters p = pass(stage, input);
    p.from = from;
    return p;
  }
  // `exact`: to return the source where nothing is blurred.
  LineParameters last(Stage stage, bool exact = false) const {
    LineParameters p = pass(stage);
    p.last = true, p.exact = exact;
    return p;
  }
  // By the whole mask: along columns.
  LineParameters masked() const {
    LineParameters p = pass(Stage::filter);
    p.whole_mask = true;
    return p;
  }
  // One of these planes in scratch, as images of all planes: only those of the chunk may be read or written.
  Image scratch(int64_t input) const {
    Image image;
    image.data = place_.scratch + input * inputs() - first_ * plane_;
    image.stride[0] = plane_ * a_.shape.c, image.stride[1] = plane_, image.stride[2] = row_, image.stride[3] = 1;
    return image;
  }
  int64_t inputs() const { return plan_.chunk * plane_; }  // from one input's scratch to the next's
  int64_t planes() const { return count_; }
  int first_plane() const { return static_cast<int>(first_); }

  void rows(const LineParameters& p) const { launch_lines(false, what_, a_, place_, count_, p); }
  void columns(const LineParameters& p) const { launch_lines(true, what_, a_, place_, count_, p); }

 private:
  const char* what_;
  const CorruptArgs& a_;
  const Place& place_;
  const Plan& plan_;
  int64_t row_, plane_, first_ = 0, count_ = 0;
};

}  // namespace softdiff::cuda
