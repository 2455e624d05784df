// SPDX-License-Identifier: Apache-2.0
// A pass over lines of length n = 2^j L by the fast DCT: 2^j threads a line, each with L numbers in registers.
//
// The first j steps of the recursion (cpu/plan.h) are taken where the line comes into shared memory, the first of them on
// the way there: they leave 2^j parts, each a DCT-II or a DCT-IV of length L. Bits of a part's number, from the highest,
// say which half it went to in each step. Only the second of two halves of a DCT-II is a DCT-IV, whose halves are both
// DCT-II; so among the nodes of any step the second alone is a DCT-IV. A warp's lines are of one part, since the parts
// run different code. A DCT-IV that is split ends with a butterfly between the spectra of two parts, through shared memory.
#pragma once

#include "line_pass.h"

#include <type_traits>

namespace softdiff::cuda {

// Where frequency k of a line of kLength 2^levels lies: `Places` continued beyond the codelet.
template <int kLength>
SOFTDIFF_DEVICE int place_of(int k, int levels) {
  int start = 0;
  bool four = false;
#pragma unroll 1
  for (int l = levels - 1; l >= 0; --l) {
    const int half = kLength << l;
    const bool odd = k % 2 == 1;
    if (odd) start += half;
    k = odd && four ? half - (k + 1) / 2 : k / 2;
    four = odd && !four;
  }
  return start + (four ? place_table<kLength>.four[k] : place_table<kLength>.two[k]);
}

// Which part of which line a thread has: a warp's 32 lines are of one part, or (eight parts) its 16 lines are of two parts of
// one kind, five DCT-II and three DCT-IV, which are padded to three and two warps. Where a block or a thread stands is
// computed again after each transform, rather than kept in registers during it.
struct LinePart {
  int part, line;
  bool four, active = true;  // four: whether it is a DCT-IV
  SOFTDIFF_DEVICE explicit LinePart(int levels) {
    const int thread = here(static_cast<int>(threadIdx.x)), slot = thread / 16;
    part = thread / 32, line = thread % 32;
    if (levels == 3) {
      part = static_cast<int>(0x1751064320ull >> (4 * slot) & 15), line = thread % 16;
      active = slot != 5 && slot != 9;
    }
    four = false;
#pragma unroll 1
    for (int l = levels - 1; l >= 0; --l) four = !four && (part >> l & 1) != 0;
  }
};

// The place of frequency N - k (DCT-II), or N - 1 - k (DCT-IV), for the place of frequency k.
template <int N, bool kFour>
struct Partner {
  int at[N] = {};
  SD_INLINE constexpr Partner() {
    constexpr Places<N> place{};
    for (int k = kFour ? 0 : 1; k < N; ++k) {
      if (kFour) at[place.four[k]] = place.four[N - 1 - k];
      if (!kFour) at[place.two[k]] = place.two[N - k];
    }
  }
};

// The rotation by pi (2 q + 1) / 4n before the halves of a DCT-IV of length n: tan of half the angle (at most pi/8), sin.
SOFTDIFF_DEVICE float2 turn_of(int q, int n) {
  const float y = static_cast<float>(2 * q + 1) / static_cast<float>(8 * n) * 3.14159265358979f, s = y * y;
  float series = fmaf(s, 3.5921280365724e-3f, 8.8632355299021e-3f);
  series = fmaf(s, series, 2.1869488536155e-2f);
  series = fmaf(s, series, 5.3968253968254e-2f);
  series = fmaf(s, series, 1.3333333333333e-1f);
  series = fmaf(s, series, 3.3333333333333e-1f);
  const float t = fmaf(y * s, series, y);
  return make_float2(t, 2.0f * t / fmaf(t, t, 1.0f));
}

// In place: the rotation with every other one mirrored (`rotate`, which a negative sine stands for), or its transpose.
SOFTDIFF_DEVICE void turn(float2 by, bool transposed, float& a, float& b) {
  const uint32_t sign = __float_as_uint(by.y) & 0x80000000u;
  const auto mirrored = [&](float x) { return __uint_as_float(__float_as_uint(x) ^ sign); };
  const float in = transposed ? mirrored(b) : b, u = fmaf(in, by.x, a), y = fmaf(u, fabsf(by.y), -in);
  a = fmaf(-y, by.x, u);
  b = transposed ? y : mirrored(y);
}

SOFTDIFF_DEVICE void butterfly(float& a, float& b) {
  const float sum = a + b;
  b = a - b, a = sum;
}

SOFTDIFF_DEVICE void reverse(float (&x)[4]) {
  const float a = x[0], b = x[1];
  x[0] = x[3], x[1] = x[2], x[2] = b, x[3] = a;
}

// Place r among the first halves of a step's nodes, as the position q < half in the node's line: the steps to come have
// mirrored what lies in their second halves.
template <int kLength>
SOFTDIFF_DEVICE int unfolded(int r, int level) {
  int q = r % kLength;
#pragma unroll 1
  for (int l = 0; l < level; ++l) {
    if ((r / kLength) >> l & 1) q = (2 * kLength << l) - 1 - q;
  }
  return q;
}

// Its inverse: `level` steps are to come.
template <int kLength>
SOFTDIFF_DEVICE int folded(int q, int level) {
  int start = 0;
#pragma unroll 1
  for (int l = level - 1; l >= 0; --l) {
    const int half = kLength << l;
    if (q >= half) start += half, q = 2 * half - 1 - q;
  }
  return start + q;
}

inline int fast_lines_threads(int levels) { return levels == 3 ? 160 : 32 << levels; }

template <bool kColumns>
SOFTDIFF_HD int fast_lines_tile(int n, int lines) {
  return kColumns ? n * lines : lines * (n + 4);  // rows: float4s of eight lines lie in different banks
}

template <bool kColumns>
size_t fast_lines_shared(int n, int lines) {
  return room<Values>(1) + room<float>(kLineThreads / 32) + 2 * room<float>(32) + room<float>(fast_lines_tile<kColumns>(n, lines) + 3 * n);
}

// Blocks on a multiprocessor, for the registers' bound: two where a thread's 168 registers suffice.
constexpr int fast_lines_blocks(bool columns, int length) {
  return length == 112 || (length == 128 && columns && kArchitecture >= 100) ? 1 : 2;
}

template <bool kColumns, int kLength>
__global__ void __launch_bounds__(kLineThreads, fast_lines_blocks(kColumns, kLength))
    fast_lines_kernel(const __grid_constant__ CorruptArgs a, const __grid_constant__ LineParameters p) {
  const int levels = p.levels, n = kLength << levels, half_n = n / 2;
  const int lines_here = static_cast<int>(kColumns ? a.shape.w : a.shape.h);
  const bool spectrum_in = p.stage == Stage::inverse, spectrum_out = p.stage == Stage::forward;

  Arena arena;
  Values* const shared_values = arena.take<Values>(1);
  float* const energies = arena.take<float>(kLineThreads / 32);
  float* across[2];
  for (int i = 0; i < 2; ++i) across[i] = arena.take<float>(32);
  // The tile, then the gains by place, twice n, and the turns. Their addresses, too, are computed where they are needed.
  const int tile_size = fast_lines_tile<kColumns>(n, p.lines);
  float* const tile = arena.take<float>(tile_size + 3 * n);
  const auto along = [&](int i) { return tile + here(tile_size) + i * n; };
  // Place `row` of a line.
  const auto at = [&](int row, int of) { return tile + (kColumns ? row * p.lines + of : of * (n + 4) + row); };
  const auto four_at = [&](int row, int of) { return reinterpret_cast<float4*>(at(row, of)); };

  const auto in_plane = [&] { return LineSpot(a, p, here(static_cast<int>(blockIdx.x))); };
  const int threads = blockDim.x;
  LineSpot spot = in_plane();
  int thread = threadIdx.x;
  if (thread == 0) *shared_values = line_values(a, p, spot.b);
  // The turns of a step whose nodes' halves are kLength << l, from kLength << l on.
  float2* const turns = reinterpret_cast<float2*>(along(2));
  for (int l = levels - 2; l >= 0; --l) {
    const int half = kLength << l;
    for (int r = thread; r < half; r += threads) {
      const int q = unfolded<kLength>(r, l);
      float2 turn = turn_of(q, 2 * half);
      if (q % 2 == 1) turn.y = -turn.y;
      turns[half - kLength + r] = turn;
    }
  }
  const auto each_item = [&](auto unrolled, auto visit) {
    [[maybe_unused]] constexpr int kUnroll = decltype(unrolled)::value;
#pragma unroll kUnroll
    for (int item = thread; item < p.across * (kColumns ? half_n : p.lines); item += threads) {
      const int slow = over(item, p.reciprocal), fast = item - slow * p.across;
      visit(kColumns ? slow : 4 * fast, kColumns ? 4 * fast : slow);
    }
  };
  constexpr std::integral_constant<int, 1> kOne{};
  constexpr std::integral_constant<int, 2> kTwo{};
  // A step inside shared memory, forth or (transposed) back.
  const auto step = [&](int level, bool transposed) {
    const int half = kLength << level;
    const float2* const turns = reinterpret_cast<const float2*>(along(2));
    each_item(kOne, [&](int pair, int of) {
      const int node = pair / kLength >> level, r = pair - node * half;
      float4* const first = four_at(2 * node * half + r, of);
      float4* const second = four_at((2 * node + 1) * half + r, of);
      float m[4], d[4];
      Float32::value(*first, m), Float32::value(*second, d);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (node != 1) {
          butterfly(m[e], d[e]);
        } else {
          turn(turns[half - kLength + (kColumns ? r : r + e)], transposed, m[e], d[e]);
        }
      }
      *first = Float32::raw(m), *second = Float32::raw(d);
    });
    __syncthreads();
  };

  // Place i and its mirror image: of four columns, or each of four places of a row.
  const auto each_pair = [&](auto unrolled, auto visit) {
    each_item(unrolled, [&](int i, int of) {
      const int at_line = spot.first_line + of;
      const int last = kColumns ? max(min(lines_here - at_line, 4), 0) : at_line < lines_here ? 4 : 0;
      visit(i, n - i - (kColumns ? 1 : 4), of, at_line, last);
    });
  };
  // Where the first step leaves the sums of a pair, and whether the four of a row are in reverse there.
  const auto folded_row = [&](int i, bool& reversed) {
    reversed = false;
    if (levels == 1) return i;
    const int row = folded<kLength>(i, levels - 1), end = kColumns ? row : folded<kLength>(i + 3, levels - 1);
    reversed = end < row;
    return min(row, end);
  };

  {
    const LineSource source(p, spot.b, spot.c);
    const auto load = [&](auto unrolled, auto plain) {
      each_pair(unrolled, [&](int i, int mirror, int of, int at_line, int last) {
        constexpr bool kPlain = decltype(plain)::value;
        if (last == 0) return;  // lines outside the plane stay as they are
        float m[4], d[4];
        source.template read4<kPlain>(kColumns ? i : at_line, kColumns ? at_line : i, last, m);
        source.template read4<kPlain>(kColumns ? mirror : at_line, kColumns ? at_line : mirror, last, d);
        if (spectrum_in && !kColumns) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            *at(place_of<kLength>(i + e, levels), of) = m[e], *at(place_of<kLength>(mirror + e, levels), of) = d[e];
          }
          return;
        }
        int to = i, and_to = mirror;
        if (spectrum_in) {
          to = place_of<kLength>(i, levels), and_to = place_of<kLength>(mirror, levels);
        } else if (levels > 0) {
          bool reversed;
          to = folded_row(i, reversed), and_to = half_n + to;
          if (!kColumns) reverse(d);
#pragma unroll
          for (int e = 0; e < 4; ++e) butterfly(m[e], d[e]);
          if (!kColumns && reversed) reverse(m), reverse(d);
        }
        *four_at(to, of) = Float32::raw(m), *four_at(and_to, of) = Float32::raw(d);
      });
    };
    if (p.plain_from) {
      load(kTwo, std::true_type{});
    } else {
      load(kOne, std::false_type{});
    }
  }
  __syncthreads();
  const Values& v = *shared_values;
  float* const gains_to = along(0);
#pragma unroll 1
  for (int k = thread; k < n; k += threads) {
    const int to = place_of<kLength>(k, levels);
    const float norm = p.norm[k == 0 ? 0 : 1];
    float first = 1.0f, second = 0.0f;
    if (p.stage == Stage::filter) gain_at(v, p.unit * static_cast<float>(k), kColumns, first, second);
    gains_to[to] = first * norm;
    if (kColumns) gains_to[n + to] = second * norm;
  }
  if (kColumns && p.whole_mask && thread < p.lines) {
    gain_at(v, p.unit_across * static_cast<float>(spot.first_line + thread), false, across[0][thread], across[1][thread]);
  }
  if (!spectrum_in) {
#pragma unroll 1
    for (int level = levels - 2; level >= 0; --level) step(level, false);
  }

  LinePart at_part(levels);
  float x[kLength];
  // To the thread's numbers from shared memory, or back.
  float* mine = at(at_part.part * kLength, at_part.line);
  if constexpr (!kColumns) {
#pragma unroll
    for (int i = 0; i < kLength; i += 4) {
      const float4 q = *reinterpret_cast<const float4*>(mine + i);
      x[i] = q.x, x[i + 1] = q.y, x[i + 2] = q.z, x[i + 3] = q.w;
    }
  } else if (levels < 3) {
#pragma unroll
    for (int i = 0; i < kLength; ++i) x[i] = mine[32 * i];
  } else {
#pragma unroll
    for (int i = 0; i < kLength; ++i) x[i] = mine[16 * i];
  }

  // The butterfly that ends a DCT-IV of two parts or pairs of parts, or (transposed) that begins its transpose.
  const auto close = [&](bool transposed) {
    if (levels < 2) return;
    const LinePart my(levels);
    const int bit = my.part < 4 ? 1 : 2;
    const float sign = ((my.part & bit) != 0) != transposed ? 1.0f : -1.0f;
    const auto area = [&](int part) {
      return tile + (my.four ? (part - 5) / 2 : part < 4 ? part - 2 : part / 2) * kLength * 32 + my.line;
    };
#pragma unroll 1
    for (int kind = 0; kind < levels - 1; ++kind) {
      const bool now = my.part >= 2 && my.four == (kind == 1);
      __syncthreads();
      if (now) {
        float* own = area(my.part);
#pragma unroll
        for (int i = 0; i < kLength; ++i) own[32 * i] = x[i];
      }
      __syncthreads();
      if (now && !my.four) {
        constexpr Partner<kLength, false> other{};
        const float* theirs = area(my.part ^ bit);
#pragma unroll
        for (int i = 1; i < kLength; ++i) x[i] = fmaf(theirs[32 * other.at[i]], sign, x[i]);
      } else if (now) {
        constexpr Partner<kLength, true> other{};
        const float* theirs = area(my.part ^ bit);
#pragma unroll
        for (int i = 0; i < kLength; ++i) x[i] = fmaf(theirs[32 * other.at[i]], sign, x[i]);
      }
    }
  };

  if (!spectrum_in) {
    if (at_part.four) {
      Unrolled<float, kLength>::four(x);
    } else {
      Unrolled<float, kLength>::two(x);
    }
    close(false);
  }
  __syncthreads();  // the gains are there, and all numbers have been taken
  at_part = LinePart(levels);
  const float* const gains = along(0) + at_part.part * kLength;
  // A few gains at a time: read ahead, they would not fit beside the numbers. A branch that is never taken keeps them where
  // they are.
  const auto is_never = [&](int i) { return i % 16 == 0 && p.lines == -i; };
  bool masked = false;
  if constexpr (kColumns) {
    if (p.whole_mask) {
      masked = true;
      const float* const others = gains + n;
      const float w0 = across[0][at_part.line], w1 = across[1][at_part.line];
      const float constant = mask_constant(v), rest = constant * p.norm[1];
      float energy = 0.0f;
#pragma unroll
      for (int i = 0; i < kLength; ++i) {
        if (is_never(i)) return;
        const float m = fmaf(gains[i], w0, fmaf(others[i], w1, i == 0 ? constant * p.norm[at_part.part == 0 ? 0 : 1] : rest));
        x[i] *= m;
        energy = fmaf(x[i], x[i], energy);
        if (p.energy) x[i] *= m;
      }
      if (p.energy) {
        const bool real = at_part.active && in_plane().first_line + at_part.line < lines_here;
        energy = warp_sum(real ? energy : 0.0f);
        thread = here(static_cast<int>(threadIdx.x));
        if (thread % 32 == 0) energies[thread / 32] = energy;
        __syncthreads();
        if (thread == 0) p.parts[blockIdx.x + static_cast<int64_t>(p.first_plane) * p.slabs] = block_sum(energies);
        if (!p.backward) return;
      }
    }
  }
  if (!masked) {
    // Of vectors of gains, whose registers have to be neighbours, sm_80 would spill.
    const volatile float* const one_by_one = gains;
#pragma unroll
    for (int i = 0; i < kLength; ++i) {
      if (is_never(i)) return;
      x[i] *= one_by_one[i];
    }
  }
  if (!spectrum_out) {
    close(true);
    if (at_part.four) {
      Unrolled<float, kLength>::four_t(x);
    } else {
      Unrolled<float, kLength>::two_t(x);
    }
    if (levels >= 2) __syncthreads();
  }

  at_part = LinePart(levels);
  if (at_part.active) {
    mine = at(at_part.part * kLength, at_part.line);
    if constexpr (!kColumns) {
#pragma unroll
      for (int i = 0; i < kLength; i += 4) {
        *reinterpret_cast<float4*>(mine + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
      }
    } else if (levels < 3) {
#pragma unroll
      for (int i = 0; i < kLength; ++i) mine[32 * i] = x[i];
    } else {
#pragma unroll
      for (int i = 0; i < kLength; ++i) mine[16 * i] = x[i];
    }
  }
  __syncthreads();
  if (!spectrum_out) {
#pragma unroll 1
    for (int level = 0; level < levels - 1; ++level) step(level, true);
  }
  thread = here(static_cast<int>(threadIdx.x));
  spot = in_plane();
  const LineResult<!kColumns> out(a, p, v, spot.b, spot.c);
  const auto store = [&](auto plain) {
  each_pair(kOne, [&](int i, int mirror, int of, int at_line, int last) {
    if (last == 0) return;
    float m[4], d[4];
    if (spectrum_out && !kColumns) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        m[e] = *at(place_of<kLength>(i + e, levels), of), d[e] = *at(place_of<kLength>(mirror + e, levels), of);
      }
    } else {
      int from = i, and_from = mirror;
      bool reversed = false;
      if (spectrum_out) {
        from = place_of<kLength>(i, levels), and_from = place_of<kLength>(mirror, levels);
      } else if (levels > 0) {
        from = folded_row(i, reversed), and_from = half_n + from;
      }
      Float32::value(*four_at(from, of), m), Float32::value(*four_at(and_from, of), d);
      if (!spectrum_out && levels > 0) {
        if (!kColumns && reversed) reverse(m), reverse(d);
#pragma unroll
        for (int e = 0; e < 4; ++e) butterfly(m[e], d[e]);
        if (!kColumns) reverse(d);
      }
    }
    [[maybe_unused]] constexpr int kSides = decltype(plain)::value ? 2 : 1;  // unrolled where that is short
#pragma unroll kSides
    for (int side = 0; side < 2; ++side) {
      const int place = side == 0 ? i : mirror, row = kColumns ? place : at_line, column = kColumns ? at_line : place;
      out.template write4<decltype(plain)::value>(row, column, last, m);
#pragma unroll
      for (int e = 0; e < 4; ++e) m[e] = d[e];
    }
  });
  };
  if (out.plain()) {
    store(std::true_type{});
  } else {
    store(std::false_type{});
  }
}

}  // namespace softdiff::cuda
