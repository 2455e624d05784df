// SPDX-License-Identifier: Apache-2.0
// Which engine takes a shape, and what the caller has to lend it.
#pragma once

#include "../args.h"

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace softdiff::cuda {

enum class Engine : int { small = 0, square = 1, lines = 2 };
// What an op asks of an engine: `loss` sums for each sample, `mix` room for several spectra.
enum class Kind : int { plain, loss, mix };

inline Kind kind_of(std::string_view op) {
  return op == "soft_score_loss" || op == "spectral_loss" ? Kind::loss : op == "spectral_mix" ? Kind::mix : Kind::plain;
}

constexpr int64_t kMostSmall = 24;

// Sides of the square planes that square.h takes. A mix has two planes in shared memory, and at 56 px, with four planes a
// block, they would be more than the 99 KiB that every GPU has.
#define SOFTDIFF_SQUARES(SIDE) SIDE(16) SIDE(28) SIDE(32) SIDE(48) SIDE(56) SIDE(64) SIDE(96) SIDE(128)
constexpr int64_t kMostMixedSquare = 96;

inline bool square_side(Kind kind, int64_t h, int64_t w) {
  if (h != w || (kind == Kind::mix && (h > kMostMixedSquare || h == 56))) return false;
#define SOFTDIFF_SIDE(N) if (h == N) return true;
  SOFTDIFF_SQUARES(SOFTDIFF_SIDE)
#undef SOFTDIFF_SIDE
  return false;
}

struct Plan {
  Engine engine = Engine::small;
  int side_h = 0, side_w = 0;  // of a parity's square in each table; 0: no table
  int64_t chunk = 0;           // planes in scratch at a time
  int64_t scratch = 0;         // floats
  int64_t parts = 1;           // sums that a sample's loss consists of
};

// How lines.h takes a line: by a codelet's length times 2^levels, or (codelet 0) by dense tables.
struct LineAxis {
  int codelet = 0, levels = 0;
  int lines() const { return codelet == 0 ? 8 : levels == 3 ? 16 : 32; }  // of a block
  int64_t slabs(int64_t others) const { return (others + lines() - 1) / lines(); }
  int side(int64_t n) const { return codelet == 0 ? static_cast<int>((n + 1) / 2 + 3) / 4 * 4 : 0; }
};

inline LineAxis line_axis(int64_t n) {
  for (int levels = 0; levels <= 3; ++levels) {
    for (const int codelet : {64, 80, 96, 112, 128}) {
      if (n == codelet << levels) return {codelet, levels};
    }
  }
  return {};
}

inline int64_t scratch_row(const Shape& s) { return (s.w + 3) / 4 * 4; }

// What the choice of an engine asks of a device.
struct Machine {
  int64_t l2_bytes = 0, multiprocessors = 0;
};

inline Plan plan_of(Kind kind, const Shape& s, int64_t inputs, const Machine& machine) {
  Plan p;
  p.parts = s.c;
  if (square_side(kind, s.h, s.w)) {
    p.engine = Engine::square;
    return p;
  }
  const int64_t side = std::max(s.h, s.w);
  if (side <= kMostSmall) {
    p.engine = Engine::small;
    p.side_h = p.side_w = side <= 8 ? 4 : side <= 16 ? 8 : 12;
    return p;
  }
  p.engine = Engine::lines;
  const LineAxis along_h = line_axis(s.h), along_w = line_axis(s.w);
  p.side_h = along_h.side(s.h), p.side_w = along_w.side(s.w);
  const int64_t slabs = std::min(along_h.slabs(s.w), along_w.slabs(s.h));
  const int64_t plane = s.h * scratch_row(s) * inputs, planes = s.b * s.c;
  // A third of the L2 cache holds what passes hand over, but the chip is filled first.
  p.chunk = std::max(machine.l2_bytes / 3 / (4 * plane), (machine.multiprocessors + slabs - 1) / slabs);
  p.chunk = std::min(std::max<int64_t>(p.chunk, 1), std::max<int64_t>(planes, 1));
  p.scratch = p.chunk * plane;
  if (kind == Kind::loss) p.parts = s.c * along_h.slabs(s.w);
  return p;
}

}  // namespace softdiff::cuda
