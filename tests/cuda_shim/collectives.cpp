// SPDX-License-Identifier: Apache-2.0
// The warp's collectives. Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type",
// ldmatrix and movmatrix.
#include <cmath>
#include <cstring>

#include "engine.h"
#include "include/cuda_fp16.h"
#include "include/shim_ptx.h"

namespace softdiff_shim {
namespace {

struct Word {
  uint32_t in, out;
  int source;
};

void exchange(void* const* records) {
  for (int lane = 0; lane < 32; ++lane) {
    auto* mine = static_cast<Word*>(records[lane]);
    mine->out = static_cast<const Word*>(records[mine->source])->in;
  }
}

void collect_votes(void* const* records) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= static_cast<const Word*>(records[lane])->in << lane;
  for (int lane = 0; lane < 32; ++lane) static_cast<Word*>(records[lane])->out = votes;
}

struct Mma {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

float low(uint32_t pair) { return half_value(static_cast<uint16_t>(pair)); }
float high(uint32_t pair) { return half_value(static_cast<uint16_t>(pair >> 16)); }

// Rounds toward zero, as the tensor cores' accumulator does: a kernel that needs unbiased rounding fails here too.
float truncated(double value) {
  const float nearest = static_cast<float>(value);
  return std::isfinite(nearest) && std::fabs(static_cast<double>(nearest)) > std::fabs(value)
             ? std::nextafter(nearest, 0.0f)
             : nearest;
}

void multiply(void* const* records) {
  double a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* mine = static_cast<const Mma*>(records[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {  // registers: upper left, lower left, upper right, lower right
      double* to = &a[group + (i & 1) * 8][pair + (i & 2) * 4];
      to[0] = low(mine->a[i]);
      to[1] = high(mine->a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[pair + i * 8][group] = low(mine->b[i]);
      b[pair + i * 8 + 1][group] = high(mine->b[i]);
    }
  }
  for (int row = 0; row < 16; ++row) {
    double sum[8] = {};
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) sum[n] += a[row][k] * b[k][n];
    }
    for (int n = 0; n < 8; ++n) {
      float& d = static_cast<const Mma*>(records[row % 8 * 4 + n / 2])->d[row / 8 * 2 + n % 2];
      d = truncated(sum[n] + static_cast<double>(d));
    }
  }
}

struct Rows {
  uint16_t row[8];  // of the matrix lane / 8
  uint32_t* out;
  bool transposed;
};

void distribute(void* const* records) {
  for (int lane = 0; lane < 32; ++lane) {
    const auto* mine = static_cast<const Rows*>(records[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto element = [&](int row, int column) -> uint32_t {
        return static_cast<const Rows*>(records[matrix * 8 + row])->row[column];
      };
      const int group = lane / 4, pair = lane % 4 * 2;
      mine->out[matrix] = mine->transposed ? element(pair, group) | element(pair + 1, group) << 16
                                           : element(group, pair) | element(group, pair + 1) << 16;
    }
  }
}

void transpose(void* const* records) {
  const auto element = [&](int row, int column) {
    return (static_cast<const Word*>(records[row * 4 + column / 2])->in >> (column % 2 * 16)) & 0xffffu;
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, pair = lane % 4 * 2;
    static_cast<Word*>(records[lane])->out = element(pair, group) | element(pair + 1, group) << 16;
  }
}

}  // namespace

uint32_t shuffle(Site site, Shuffle kind, unsigned mask, uint32_t value, unsigned operand, int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) engine.fail(site, "width is not a power of 2 up to 32");
  const int lane = engine.self().lane, first = lane & ~(width - 1), last = first + width - 1;
  const int delta = operand > 32 ? 32 : static_cast<int>(operand);
  int source = lane;
  if (kind == Shuffle::kIndex) source = first | static_cast<int>(operand & static_cast<unsigned>(width - 1));
  if (kind == Shuffle::kUp && lane - delta >= first) source = lane - delta;
  if (kind == Shuffle::kDown && lane + delta <= last) source = lane + delta;
  if (kind == Shuffle::kXor && (lane ^ static_cast<int>(operand & 31u)) <= last) {
    source = lane ^ static_cast<int>(operand & 31u);
  }
  Word word{value, 0, source};
  engine.warp_collective(site, mask, &word, exchange);
  return word.out;
}

unsigned ballot(Site site, unsigned mask, bool vote) {
  Word word{vote, 0, 0};
  engine.warp_collective(site, mask, &word, collect_votes);
  return word.out;
}

void sync_warp(Site site, unsigned mask) { engine.warp_collective(site, mask, nullptr, nullptr); }

int sync_threads(Site site, int vote) { return engine.barrier(site, vote); }

void mma_f16(Site site, float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  Mma mma{d, a, {b0, b1}};
  engine.warp_collective(site, 0xffffffffu, &mma, multiply);
}

// Each lane reads its row as it comes, before the others have come: ldmatrix orders nothing, so rows that another lane
// wrote since the last __syncwarp or __syncthreads may be read stale.
void ldmatrix_x4(Site site, uint32_t* r, const void* row, bool transposed) {
  engine.check_shared16(site, row);
  Rows rows{{}, r, transposed};
  std::memcpy(rows.row, row, 16);
  engine.warp_collective(site, 0xffffffffu, &rows, distribute);
}

uint32_t movmatrix_trans(Site site, uint32_t x) {
  Word word{x, 0, 0};
  engine.warp_collective(site, 0xffffffffu, &word, transpose);
  return word.out;
}

}  // namespace softdiff_shim
