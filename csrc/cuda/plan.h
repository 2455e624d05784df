// SPDX-License-Identifier: Apache-2.0
// Which engine takes a shape, and what the caller has to lend it.
#pragma once

#include "../args.h"

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace softdiff::cuda {

enum class Engine : int { small = 0, plane = 1, lines = 2, cluster = 3, square = 4 };
// What an op asks of an engine: `loss` sums for each sample, `mix` room for several spectra.
enum class Kind : int { plain, loss, mix };

inline Kind kind_of(std::string_view op) {
  return op == "soft_score_loss" ? Kind::loss : op == "spectral_mix" ? Kind::mix : Kind::plain;
}

constexpr int64_t kMostSmall = 24, kMostPlane = 128, kMostCluster = 256, kMostLines = 1024, kMostMixedPlane = 64;

// Sides of the square planes that square.h takes; a mix has two planes in shared memory.
#define SOFTDIFF_SQUARES(SIDE) SIDE(16) SIDE(28) SIDE(32) SIDE(48) SIDE(56) SIDE(64) SIDE(96) SIDE(112) SIDE(128)
constexpr int64_t kMostMixedSquare = 96;

inline bool square_side(Kind kind, int64_t h, int64_t w) {
  if (h != w || (kind == Kind::mix && h > kMostMixedSquare)) return false;
#define SOFTDIFF_SIDE(N) if (h == N) return true;
  SOFTDIFF_SQUARES(SOFTDIFF_SIDE)
#undef SOFTDIFF_SIDE
  return false;
}

struct Plan {
  Engine engine = Engine::small;
  int side_h = 0, side_w = 0;  // of a parity's square in each table: kN / 2 for small, whole tiles of 16 otherwise
  int64_t chunk = 0;           // planes in scratch at a time
  int64_t scratch = 0;         // floats
  int64_t parts = 1;           // sums that a sample's loss consists of
};

// Tiles of 16 that cover the even half of n.
SOFTDIFF_HD int tiles_of(int64_t n) { return static_cast<int>(((n + 1) / 2 + 15) / 16); }
inline int lines_of(int tiles) { return tiles <= 8 ? 64 : tiles <= 16 ? 32 : 16; }  // in a slab
inline int64_t slabs_of(int64_t across, int tiles) { return (across + lines_of(tiles) - 1) / lines_of(tiles); }
inline int64_t scratch_row(const Shape& s) { return (s.w + 3) / 4 * 4; }

// Of a block of cluster.h: two quadrants as words in rows of this length, free of bank conflicts for ldmatrix, and what
// the gains and the warps' sums take.
SOFTDIFF_HD int cluster_stride(int tiles_w) { return 16 * tiles_w + 8; }
inline int64_t cluster_bytes(int tiles_h, int tiles_w) { return 4 * 32 * tiles_h * cluster_stride(tiles_w) + 5 * 1024; }

// What the choice of an engine asks of a device.
struct Machine {
  int64_t l2_bytes = 0, multiprocessors = 0;
  int64_t shared_bytes = 0;  // of a block, at most
  bool clusters = false;
};

inline Plan plan_of(Kind kind, const Shape& s, int64_t inputs, const Machine& machine) {
  Plan p;
  const int64_t side = std::max(s.h, s.w);
  p.parts = s.c;
  if (square_side(kind, s.h, s.w)) {
    p.engine = Engine::square;
    return p;
  }
  if (side <= kMostSmall) {
    p.engine = Engine::small;
    p.side_h = p.side_w = side <= 8 ? 4 : side <= 16 ? 8 : 12;
    return p;
  }
  p.side_h = 16 * tiles_of(s.h), p.side_w = 16 * tiles_of(s.w);
  if (side <= kMostPlane && !(kind == Kind::mix && s.w > kMostMixedPlane)) {
    p.engine = Engine::plane;
    return p;
  }
  const int tiles_h = p.side_h / 16, tiles_w = p.side_w / 16;
  if (side <= kMostCluster && kind != Kind::mix && machine.clusters && cluster_bytes(tiles_h, tiles_w) <= machine.shared_bytes) {
    p.engine = Engine::cluster;
    if (kind == Kind::loss) p.parts = 2 * s.c;
    return p;
  }
  p.engine = Engine::lines;
  const int64_t slabs = std::min(slabs_of(s.w, tiles_h), slabs_of(s.h, tiles_w));
  const int64_t plane = s.h * scratch_row(s) * inputs, planes = s.b * s.c;
  // A third of the L2 cache holds what passes hand over, but the chip is filled first.
  p.chunk = std::max(machine.l2_bytes / 3 / (4 * plane), (machine.multiprocessors + slabs - 1) / slabs);
  p.chunk = std::min(std::max<int64_t>(p.chunk, 1), std::max<int64_t>(planes, 1));
  p.scratch = p.chunk * plane;
  if (kind == Kind::loss) p.parts = s.c * slabs_of(s.w, tiles_h);
  return p;
}

}  // namespace softdiff::cuda
