// SPDX-License-Identifier: Apache-2.0
// What a pass of lines.h is told, and its way between global memory and a tile in shared memory.
//
// A block takes `lines` neighbouring lines (rows or columns) of one plane, all in its shared memory.
// An item is two groups of four neighbours of a row of the plane: place i and its mirror image n - 1 - i of four columns,
// or places i to i + 3 of a row and their mirror images.
#pragma once

#include "corrupt_op.h"

namespace softdiff::cuda {

enum class Stage : int { forward, inverse, filter };

constexpr int kLineThreads = 160;  // at most
constexpr int kLongestLine = 1024;

struct LineParameters {
  Stage stage = Stage::forward;
  bool whole_mask = false;  // filter: by the mask over both axes, else by the gain along this one
  bool energy = false;      // filter: by the mask's square, with the energy of what the mask leaves
  bool backward = true;     // filter: false where the energy is all that is wanted
  bool last = false;        // rows: finish, and write what the op writes
  bool exact = false;       // whether the op has to return its input where nothing is blurred
  float norm[2] = {1.0f, 1.0f};  // by which the gains of frequency 0, and (fast) of the others, are to be multiplied
  float factor = 1.0f;      // of the op's scale
  Image from, less, to;     // the transform is of from - less, where there is that
  bool plain_from = false, plain_to = false;
  int first_plane = 0, slabs = 0, lines = 0;
  int levels = 0;                 // fast: the line is of the codelet's length times 2^levels
  double* parts = nullptr;        // where the blocks leave their energies
  float unit = 0.0f, unit_across = 0.0f;  // pi / n along and across the lines
  const float* table = nullptr;   // dense: D and its transpose, by parity [2, 2, side, side]
  int side = 0;
  int across = 0;                 // items (fast), or groups of four (dense), side by side in a piece
  uint32_t reciprocal = 0;        // 2^32 / across, rounded up
};

// A block's place.
struct LineSpot {
  int b, c, first_line;
  SOFTDIFF_DEVICE LineSpot(const CorruptArgs& a, const LineParameters& p, int block) {
    const int channels = static_cast<int>(a.shape.c), plane = p.first_plane + block / p.slabs;
    b = plane / channels, c = plane % channels, first_line = block % p.slabs * p.lines;
  }
};

// item / across for the few thousand items of a block; across > 1.
SOFTDIFF_DEVICE int over(int item, uint32_t reciprocal) {
  return static_cast<int>(__umulhi(static_cast<unsigned>(item), reciprocal));
}

// Float32 in whole aligned fours, and small enough for 32-bit places in a plane: what `plain_from` and `plain_to` mean.
inline bool is_plain(const Image& image, const Shape& s) {
  if (image.dtype != DType::float32 || image.stride[3] != 1 || reinterpret_cast<uintptr_t>(image.data) % 16 != 0) return false;
  for (int i = 0; i < 3; ++i) {
    if (image.stride[i] % 4 != 0) return false;
  }
  return s.w % 4 == 0 && image.stride[2] >= 0 && s.h * image.stride[2] < (1 << 30);
}

// Keeps an address as it was computed: nvcc would else add its parts anew at every use.
SOFTDIFF_DEVICE float* whole_address(float* at) {
#ifndef SOFTDIFF_CUDA_SHIM
  asm volatile("" : "+l"(at));
#endif
  return at;
}

// A plane of a plain image.
struct PlainPlane {
  float* base;
  int row;
  SOFTDIFF_DEVICE PlainPlane(const Image& image, int b, int c)
      : base(whole_address(static_cast<float*>(image.data) + (b * image.stride[0] + c * image.stride[1]))),
        row(static_cast<int>(image.stride[2])) {}
  SOFTDIFF_DEVICE float4* at(int y, int x) const { return reinterpret_cast<float4*>(base + (y * row + x)); }
};

// Four neighbours of the source as float32; those outside are 0. (Where it is plain, none of four lies outside.)
class LineSource {
 public:
  SOFTDIFF_DEVICE LineSource(const LineParameters& p, int b, int c) : p_(p), from_(p.from, b, c), less_(p.less, b, c), b_(b), c_(c) {}

  template <bool kPlain>
  SOFTDIFF_DEVICE void read4(int y, int x, int last, float (&out)[4]) const {
    float other[4];
    take<kPlain>(p_.from, from_, y, x, last, out);
    if (!p_.less) return;
    take<kPlain>(p_.less, less_, y, x, last, other);
#pragma unroll
    for (int e = 0; e < 4; ++e) out[e] -= other[e];
  }

 private:
  template <bool kPlain>
  SOFTDIFF_DEVICE void take(const Image& image, const PlainPlane& plane, int y, int x, int last, float (&out)[4]) const {
    if constexpr (kPlain) {
      Float32::value(*plane.at(y, x), out);
    } else {
      read(Plane(image, here(b_), c_), y, x, 0, last, out);
    }
  }

  const LineParameters& p_;
  const PlainPlane from_, less_;
  const int b_, c_;
};

// Where a pass leaves four neighbours: in scratch or, along rows, through the op's `finish`, of which the usual case stands here.
template <bool kFinishes>
class LineResult {
 public:
  SOFTDIFF_DEVICE LineResult(const CorruptArgs& a, const LineParameters& p, const Values& v, int b, int c)
      : a_(a), p_(p), v_(v), b_(b), c_(c), to_(p.to, b, c), add_(a.add, b, c), plain_(p.plain_to && !(p.last && v.identity)) {
    if (!kFinishes || !p.last) return;
    factor_ = v.reverse ? 1.0f : v.scale, keep_ = v.keep, noise_std_ = v.noise_std;
    if (a.key.present) key_ = key_of(a.key, b);
    first_block_ = static_cast<uint32_t>(element(a.shape, c, 0, 0) >> 2);
  }

  SOFTDIFF_DEVICE bool plain() const { return plain_; }

  template <bool kPlain>
  SOFTDIFF_DEVICE void write4(int y, int x, int last, float (&value)[4]) const {
    if constexpr (!kPlain) {
      if (kFinishes && p_.last) {
        CorruptOp{a_}.finish(v_, b_, c_, y, x, 0, last, value);
      } else {
        write(Plane(p_.to, b_, c_), y, x, 0, last, value);
      }
      return;
    }
    if (kFinishes && p_.last) {
      float other[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) value[e] *= factor_;
      if (a_.add) {
        Float32::value(*add_.at(y, x), other);
#pragma unroll
        for (int e = 0; e < 4; ++e) value[e] = fmaf(keep_, other[e], value[e]);
      }
      if (a_.key.present) {
        normals(key_, first_block_ + static_cast<uint32_t>(y * to_.row + x) / 4, other);
#pragma unroll
        for (int e = 0; e < 4; ++e) value[e] = fmaf(noise_std_, other[e], value[e]);
      }
    }
    *to_.at(y, x) = Float32::raw(value);
  }

 private:
  const CorruptArgs& a_;
  const LineParameters& p_;
  const Values& v_;
  const int b_, c_;
  const PlainPlane to_, add_;
  const bool plain_;
  float factor_ = 1.0f, keep_ = 0.0f, noise_std_ = 0.0f;
  ImageKey key_{};
  uint32_t first_block_ = 0;
};

// The sample's values, by one thread.
SOFTDIFF_DEVICE Values line_values(const CorruptArgs& a, const LineParameters& p, int b) {
  Values v = CorruptOp{a}.values(b);
  v.scale *= p.factor;
  if (!p.exact) v.identity = 0;
  return v;
}

}  // namespace softdiff::cuda
