// SPDX-License-Identifier: Apache-2.0
// Square planes of some sizes, one pass over global memory, in plain float32: a thread holds a whole column, then a whole
// row, in registers, and transforms it there (dct_small.h). Shared memory is crossed to turn columns into rows and back,
// and once more so that a thread has four neighbours to finish.
//
// An op is a struct as ops.h says. One with kPlain has its options compiled in: its images are contiguous float32, and
// instead of `finish` it says
//   kTerms            products of gains that its mask consists of, 1 or 2
//   kAdd, kNoise      whether keep * add() comes on top, and noise_std times noise from a key of one row (others: false)
//   factor(v)         what the result is multiplied by
//   result()          where it goes
#pragma once

#include "ops.h"

namespace softdiff::cuda {

// What a plane's threads share: its coefficients, and where its noise begins.
struct SquarePlane {
  Values values;
  uint32_t stream[2], first_block;
};

template <int N>
struct SquareShape {
  static_assert(N % 4 == 0, "four neighbours never lie in two rows");
  // So few that they make whole warps.
  static constexpr int kPlanes = N <= 28 ? 8 : N <= 56 ? 4 : N <= 64 ? 2 : 1;
  static constexpr int kThreads = kPlanes * N;
  static_assert(kThreads % 32 == 0, "whole warps");
  // Blocks on a multiprocessor that leave a thread the registers that a line and the work on it take. Left alone, ptxas takes
  // more, and fewer blocks fit. `more`: two products in the mask, or two sources.
  static constexpr int blocks(bool more) {
    const int registers = N <= 32 ? 64 : N <= 48 ? 80 : N <= 64 ? (more ? 104 : 96) : N <= 96 ? 144 : more ? 176 : 168;
    return 65536 / ((kThreads + 127) / 128 * 128 * registers);
  }
  // The loss on sm_120 and spectral_mix at 16 and 32 px are a register short with as many.
  static constexpr int blocks_for_loss() { return blocks(true) - (kArchitecture == 120 && N % 28 == 0 ? 1 : 0); }
  static constexpr int blocks_for_mix() { return blocks(false) - (N <= 32 ? 1 : 0); }
  // From row to row in shared memory: an odd number of fours, so that columns, and rows by fours, meet no bank twice.
  static constexpr int kStride = N % 8 == 0 ? N + 4 : N;
  static size_t shared(bool mix) {
    if (mix) return 2 * room<float>(kThreads * kStride);
    return room<float>(kThreads * kStride) + room<float4>(kThreads) + 3 * room<float>(kThreads) + room<SquarePlane>(kPlanes);
  }
};

SOFTDIFF_DEVICE void read_four(const float* from, float (&x)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
}
SOFTDIFF_DEVICE void write_four(float* to, const float (&x)[4]) { *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]); }

// A line of N numbers in a thread's registers, and the ways between it and a plane in shared memory. A spectrum's
// frequencies lie at `Places` here, and in their own order there.
template <int N>
struct SquareLine {
  static constexpr int kStride = SquareShape<N>::kStride;
  float at[N];

  SOFTDIFF_DEVICE void two() { Unrolled<float, N>::two(at); }
  SOFTDIFF_DEVICE void two_t() { Unrolled<float, N>::two_t(at); }

  template <bool kSpectrum>
  SOFTDIFF_DEVICE void read_column(const float* column) {
    constexpr Places<N> places{};
    SD_UNROLL
    for (int i = 0; i < N; ++i) at[kSpectrum ? places.two[i] : i] = column[i * kStride];
  }
  template <bool kSpectrum>
  SOFTDIFF_DEVICE void write_column(float* column) const {
    constexpr Places<N> places{};
    SD_UNROLL
    for (int i = 0; i < N; ++i) column[i * kStride] = at[kSpectrum ? places.two[i] : i];
  }
  template <bool kSpectrum>
  SOFTDIFF_DEVICE void read_row(const float* row) {
    constexpr Places<N> places{};
    SD_UNROLL
    for (int i = 0; i < N; i += 4) {
      float x[4];
      read_four(row + i, x);
      SD_UNROLL
      for (int j = 0; j < 4; ++j) at[kSpectrum ? places.two[i + j] : i + j] = x[j];
    }
  }
  template <bool kSpectrum>
  SOFTDIFF_DEVICE void write_row(float* row) const {
    constexpr Places<N> places{};
    SD_UNROLL
    for (int i = 0; i < N; i += 4) {
      float x[4];
      SD_UNROLL
      for (int j = 0; j < 4; ++j) x[j] = at[kSpectrum ? places.two[i + j] : i + j];
      write_four(row + i, x);
    }
  }

  // A column of an image. The dtype is chosen once around all loads.
  template <bool kSpectrum>
  SOFTDIFF_DEVICE void load(const Plane& plane, int x) {
    constexpr Places<N> places{};
    with_pixels(plane, [&](auto type) {
      using T = decltype(type);
      const char* from = plane.base + x * plane.image.stride[3] * T::kSize;
      const int64_t step = plane.image.stride[2] * T::kSize;
      SD_UNROLL
      for (int y = 0; y < N; ++y, from += step) {
        at[kSpectrum ? places.two[y] : y] = T::value(*reinterpret_cast<const typename T::One*>(from));
      }
    });
  }
  // Puts it into shared memory instead, beside a line in registers.
  SOFTDIFF_DEVICE static void stage(const Plane& plane, int x, float* column) {
    with_pixels(plane, [&](auto type) {
      using T = decltype(type);
      const char* from = plane.base + x * plane.image.stride[3] * T::kSize;
      const int64_t step = plane.image.stride[2] * T::kSize;
#pragma unroll 4
      for (int y = 0; y < N; ++y, from += step) {
        column[y * kStride] = T::value(*reinterpret_cast<const typename T::One*>(from));
      }
    });
  }
  // What is left of it without another image's, which comes by way of the thread's own column in shared memory: all of it
  // in registers at once would be more than there are.
  SOFTDIFF_DEVICE void subtract(const Plane& plane, int x, float* column) {
    stage(plane, x, column);
    SD_UNROLL
    for (int y = 0; y < N; ++y) at[y] -= column[y * kStride];
  }
};

// What makes frequency 0, or any other, of the transform orthonormal; its square does so for there and back.
template <int N, bool kSquare>
SOFTDIFF_DEVICE float square_norm(bool mean) {
  const float square = (mean ? 1.0f : 2.0f) / N;
  return kSquare ? square : sqrtf(square);
}

// The gains of one frequency, norms included: its own as a row's, and as a column's for all rows.
struct SquareGains {
  float h[2], w[2];
  bool kept;  // not below exp(-30) everywhere in the row

  template <bool kTwo>
  SOFTDIFF_DEVICE static SquareGains of(const Values& v, float unit, int k, float norm) {
    const float root = unit * static_cast<float>(k), lambda = root * root, decay = lambda * v.tau;
    SquareGains g;
    g.kept = v.floor != 0.0f || !(decay >= 30.0f);  // a NaN stays
    // Zero, too, where a warp takes the row along with others: what an image gets does not depend on its neighbours.
    const float e = g.kept ? exp2f(decay * -1.4426950408889634f) * norm : 0.0f, blurred = 1.0f - v.floor;
    g.h[0] = e, g.w[0] = e * blurred;
    g.h[1] = g.w[1] = 0.0f;
    if constexpr (kTwo) {
      if (!v.reverse) return g;
      const float p = -expm1f(-lambda * fabsf(v.step)), q = 1.0f - p;
      g.h[0] = v.step >= 0.0f ? e * p : e * (v.one_minus_keep - p);
      g.h[1] = e * q;
      g.w[1] = g.w[0] * (v.step >= 0.0f ? fmaf(v.one_minus_keep, q, p) : -p);
    }
    return g;
  }
};

// A block's shared memory, and a thread's part of the work.
template <int N>
struct SquareBlock {
  using Form = SquareShape<N>;
  float* planes;
  uint32_t count;  // of all planes

  SOFTDIFF_DEVICE SquareBlock(Arena& arena, uint32_t count_) : count(count_) {
    planes = arena.take<float>(Form::kThreads * Form::kStride);
  }
  // Formed again wherever they are used: kept over a transform, they would cost registers that are not there.
  SOFTDIFF_DEVICE int thread() const { return here(static_cast<int>(threadIdx.x)); }
  SOFTDIFF_DEVICE int t() const { return thread() % N; }  // column and row in its plane
  SOFTDIFF_DEVICE int local() const { return thread() / N; }
  SOFTDIFF_DEVICE uint32_t first() const { return here(static_cast<int>(blockIdx.x)) * Form::kPlanes; }
  // Threads beyond the last plane work on it, too, and keep what they find to themselves.
  SOFTDIFF_DEVICE bool real() const { return first() + local() < count; }
  SOFTDIFF_DEVICE uint32_t plane() const { return real() ? first() + local() : count - 1; }
  SOFTDIFF_DEVICE int64_t offset() const { return static_cast<int64_t>(plane()) * (N * N); }
  SOFTDIFF_DEVICE float* tile() const { return planes + local() * (N * Form::kStride); }
  SOFTDIFF_DEVICE float* column() const {
    const int own = thread();
    return planes + own / N * (N * Form::kStride) + own % N;
  }
  SOFTDIFF_DEVICE float* row() const { return planes + thread() * Form::kStride; }

  // finish(n, y, x, value) for each of the thread's groups of four neighbours: group t, and those of every fourth row on.
  template <class Finish>
  SOFTDIFF_DEVICE void each_group(Finish finish) const {
    const int own = thread() % N, y = own / (N / 4), x = own % (N / 4) * 4;
    const float* from = tile() + y * Form::kStride + x;
#pragma unroll 1
    for (int n = 0; n < N / 4; ++n) {
      float value[4];
      read_four(from + n * 4 * Form::kStride, value);
      finish(n, y + 4 * n, x, value);
    }
  }
  // ... by the op's `finish`.
  template <class Op>
  SOFTDIFF_DEVICE void finish(const Op& op, const Values& v) const {
    const int channels = static_cast<int>(op.a.shape.c), b = plane() / channels, c = plane() % channels;
    each_group([&](int, int y, int x, float (&value)[4]) { op.finish(v, b, c, y, x, 0, 4, value); });
  }
};

// What a mask may take along; of a loss it would change the energy.
template <class Op>
SOFTDIFF_DEVICE float square_factor(const Op& op, const Values& v) {
  if constexpr (Op::kPlain && !Op::kEnergy) return op.factor(v);
  return 1.0f;
}

template <class Op, int N>
__global__ void __launch_bounds__(SquareShape<N>::kThreads,
                                  Op::kEnergy ? SquareShape<N>::blocks_for_loss() : SquareShape<N>::blocks(Op::kTerms == 2))
    square_kernel(const __grid_constant__ typename Op::Args a, uint32_t planes) {
  using Form = SquareShape<N>;
  constexpr bool kPlain = Op::kPlain, kFilter = Op::kShift == Shift::filter, kInverse = Op::kShift == Shift::inverse;
  const Op op{a};
  Arena arena;
  const SquareBlock<N> block(arena, planes);
  // For each thread: its row's gains and constants of the mask, its column's gains for all rows, an energy.
  float4* rows = arena.take<float4>(Form::kThreads);
  float* columns = arena.take<float>(Op::kTerms * Form::kThreads);
  float* energies = arena.take<float>(Form::kThreads);
  SquarePlane* all = arena.take<SquarePlane>(Form::kPlanes);
  const uint32_t channels = static_cast<uint32_t>(a.shape.c);

  SquareLine<N> line;
  const auto at = [&](uint32_t index) { return static_cast<const float*>(op.source(0, index).data) + block.offset() + block.t(); };
  if constexpr (kPlain) {
    const float* from = at(0);
    SD_UNROLL
    for (int i = 0; i < N; ++i) line.at[i] = from[i * N];
    if constexpr (Op::kSources == 2) {
      const float* less = at(1);
      SD_UNROLL
      for (int i = 0; i < N; ++i) line.at[i] -= less[i * N];
    }
  } else {
    const uint32_t plane = block.plane();
    const int b = plane / channels, c = plane % channels;
    line.template load<kInverse>(Plane(op.source(0, 0), b, c), block.t());
    if constexpr (Op::kSources == 2) line.subtract(Plane(op.source(0, 1), b, c), block.t(), block.column());
  }
  if (const int thread = threadIdx.x; thread < Form::kPlanes) {
    const uint32_t own = min(block.first() + thread, planes - 1), b = own / channels;
    all[thread].values = op.values(static_cast<int>(b));
    if constexpr (Op::kNoise) {
      const uint64_t stream = static_cast<uint64_t>(a.key.stream) + b;
      all[thread].stream[0] = static_cast<uint32_t>(stream), all[thread].stream[1] = static_cast<uint32_t>(stream >> 32);
      all[thread].first_block = (own - b * channels) * (N * N / 4);
    }
  }
  __syncthreads();
  const auto values = [&]() -> const Values& { return all[block.local()].values; };
  constexpr bool kTwo = Op::kTerms == 2;
  const auto norm = [](bool mean) { return square_norm<N, kFilter && !Op::kEnergy>(mean); };
  [[maybe_unused]] bool kept = true;
  if constexpr (kFilter) {
    const Values& v = values();
    const int thread = block.thread(), k = thread % N;
    if constexpr (Op::kMasked) {
      rows[thread] = make_float4(0.0f, 0.0f, norm(k == 0) * norm(false), norm(k == 0) * norm(true));
    } else {
      const SquareGains g = SquareGains::of<kTwo>(v, 3.14159265358979f / N, k, norm(k == 0));
      const float factor = square_factor(op, v), constant = mask_constant(v) * norm(k == 0) * factor;
      kept = g.kept;
      rows[thread] = make_float4(g.h[0] * factor, g.h[1] * factor, constant * norm(false), constant * norm(true));
      // In the order of places, so that the mask takes what the transform leaves together.
      const int place = thread - k + place_table<N>.two[k];
      for (int i = 0; i < Op::kTerms; ++i) columns[Op::kTerms * place + i] = g.w[i];
    }
    line.two();
    line.template write_column<true>(block.column());
  } else if constexpr (kInverse) {
    const float own = norm(block.t() == 0);
    SD_UNROLL
    for (int i = 0; i < N; ++i) line.at[i] *= norm(i == 0) * own;  // the mean's place is 0
    line.two_t();
    line.template write_column<false>(block.column());
  } else {
    line.two();
    line.template write_column<true>(block.column());
  }
  __syncthreads();

  if constexpr (kFilter) {
    // A warp whose rows have no gain left has only zeros to put there.
    [[maybe_unused]] float energy[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (__any_sync(0xFFFFFFFFu, kept)) {
      line.template read_row<false>(block.row());
      const int thread = block.thread();
      const float* across = columns + (thread - thread % N) * Op::kTerms;
      if constexpr (Op::kMasked) {
        // The mask comes in by columns, whose neighbours are neighbours in memory, and goes to where the rows were.
        __syncthreads();
        const int plane = static_cast<int>(block.plane()), b = plane / channels, c = plane - b * channels, l = block.t();
        line.stage(Plane(op.mask(), b, c), l, block.tile() + place_table<N>.two[l]);
        __syncthreads();
        across = block.row();
      }
      const float4 own = rows[thread];
      float gains[4];
      const auto mask = [&](int place, int count) {
        constexpr int kPer = 4 / Op::kTerms;
        SD_UNROLL
        for (int i = 0; i < count; ++i) {
          const int at = place + i;
          if (at % kPer == 0) read_four(across + Op::kTerms * at, gains);
          const float gain = gains[Op::kTerms * (at % kPer)], constant = at == 0 ? own.w : own.z;
          float m = Op::kMasked ? gain * constant : fmaf(own.x, gain, constant);
          if constexpr (kTwo) m = fmaf(own.y, gains[2 * (at % kPer) + 1], m);
          line.at[at] = op.apply(line.at[at], m, energy[at % 4]);
        }
      };
      if (op.backward()) {
        Unrolled<float, N>::filter(line.at, 0, mask);
        line.template write_row<false>(block.row());
      } else {
        line.two();
        mask(0, N);
      }
    } else {
      float* row = block.row();
#pragma unroll 1
      for (int i = 0; i < N; i += 4) *reinterpret_cast<float4*>(row + i) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    if constexpr (Op::kEnergy) energies[block.thread()] = (energy[0] + energy[1]) + (energy[2] + energy[3]);
    __syncthreads();
    if constexpr (Op::kEnergy) {
      if (block.t() == 0 && block.real()) {
        const float* own = energies + block.thread();
        double sum = 0.0;
        SD_UNROLL
        for (int i = 0; i < N; i += 4) {
          const float4 e = *reinterpret_cast<const float4*>(own + i);
          sum += static_cast<double>((e.x + e.y) + (e.z + e.w));
        }
        a.plane_loss[block.plane()] = sum;
      }
    }
    if (!op.backward()) return;
    line.template read_column<true>(block.column());
    line.two_t();
    const Values& v = values();
    if constexpr (kPlain && !Op::kAdd && !Op::kNoise) {
      // Nothing needs four neighbours: columns go to memory as they are.
      if (!block.real()) return;
      float* out = static_cast<float*>(op.result().data) + block.offset() + block.t();
      if (v.identity) {
        // Exactly the input times a number: no transform, whose rounding would show.
        const float* from = at(0);
        const float factor = op.factor(v);
#pragma unroll 1
        for (int i = 0; i < N; ++i) out[i * N] = from[i * N] * factor;
      } else {
        const float factor = Op::kEnergy ? op.factor(v) : 1.0f;
        SD_UNROLL
        for (int i = 0; i < N; ++i) out[i * N] = Op::kEnergy ? line.at[i] * factor : line.at[i];
      }
      return;
    } else {
      bool identity = false;
      if constexpr (kPlain) {
        identity = v.identity;
        if (identity) {
          const float* from = at(0);
          float* to = block.column();
          const float factor = op.factor(v);
#pragma unroll 1
          for (int i = 0; i < N; ++i) to[i * Form::kStride] = from[i * N] * factor;
        }
      }
      if (!identity) line.template write_column<false>(block.column());
    }
  } else if constexpr (kInverse) {
    line.template read_row<true>(block.row());
    line.two_t();
    line.template write_row<false>(block.row());
  } else {
    line.template read_row<false>(block.row());
    line.two();
    const float own = norm(block.t() == 0);
    SD_UNROLL
    for (int i = 0; i < N; ++i) line.at[i] *= norm(i == 0) * own;
    line.template write_row<true>(block.row());
  }
  __syncthreads();
  if (!block.real()) return;

  if constexpr (!kPlain) {
    block.finish(op, values());
  } else {
    const Values& v = values();
    const int64_t offset = block.offset();
    const int t = block.t();
    [[maybe_unused]] const float4* add = nullptr;
    if constexpr (Op::kAdd) add = reinterpret_cast<const float4*>(static_cast<const float*>(op.add().data) + offset) + t;
    float4* out = reinterpret_cast<float4*>(static_cast<float*>(op.result().data) + offset) + t;
    [[maybe_unused]] const float keep = v.keep, noise_std = v.noise_std;
    [[maybe_unused]] Words counter{};
    [[maybe_unused]] uint64_t seed = 0;
    if constexpr (Op::kNoise) {
      const SquarePlane& own = all[block.local()];
      counter = {{own.first_block + t, static_cast<uint32_t>(a.key.draw), own.stream[0], own.stream[1]}};
      seed = static_cast<uint64_t>(a.key.seed);
    }
    block.each_group([&](int n, int, int, float (&value)[4]) {
      if constexpr (Op::kAdd) {
        const float4 other = add[n * N];
        value[0] = fmaf(keep, other.x, value[0]), value[1] = fmaf(keep, other.y, value[1]);
        value[2] = fmaf(keep, other.z, value[2]), value[3] = fmaf(keep, other.w, value[3]);
      }
      if constexpr (Op::kNoise) {
        float z[4];
        normals(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), z);
        counter.w[0] += N;
        SD_UNROLL
        for (int i = 0; i < 4; ++i) value[i] = fmaf(noise_std, z[i], value[i]);
      }
      out[n * N] = make_float4(value[0], value[1], value[2], value[3]);
    });
  }
}

// spectral_mix: the inputs' masked spectra add up in a second plane of shared memory, where a thread has a row.
template <class Op, int N>
__global__ void __launch_bounds__(SquareShape<N>::kThreads, SquareShape<N>::blocks_for_mix())
    square_mix_kernel(const __grid_constant__ typename Op::Args a, uint32_t planes) {
  using Form = SquareShape<N>;
  const Op op{a};
  Arena arena;
  const SquareBlock<N> block(arena, planes);
  const int channels = static_cast<int>(a.shape.c), plane = static_cast<int>(block.plane()), b = plane / channels, c = plane % channels, k = block.t();
  float* sums = arena.take<float>(Form::kThreads * Form::kStride) + block.thread() * Form::kStride;
  const float mean = square_norm<N, false>(true), other = square_norm<N, false>(false), own = k == 0 ? mean : other;
  SquareLine<N> line;
#pragma unroll 1
  for (int input = 0; input < a.count; ++input) {
    line.template load<false>(Plane(op.source(input, 0), b, c), k);
    line.two();
    __syncthreads();  // the last input's rows have been taken
    line.template write_column<true>(block.column());
    __syncthreads();
    line.template read_row<false>(block.row());
    line.two();
    line.template write_row<true>(block.row());
#pragma unroll 1
    for (int l = 0; l < N; l += 4) {
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f}, m[4];
      if (input > 0) {
        read_four(sums + l, sum);
      } else if (op.noisy()) {
        op.noise(b, c, k, l, 4, sum);
      }
      op.mask(input, b, c, k, l, 4, m);
      const float4 u = *reinterpret_cast<const float4*>(block.row() + l);
      *reinterpret_cast<float4*>(sums + l) =
          make_float4(fmaf(m[0], u.x * (own * (l == 0 ? mean : other)), sum[0]), fmaf(m[1], u.y * (own * other), sum[1]),
                      fmaf(m[2], u.z * (own * other), sum[2]), fmaf(m[3], u.w * (own * other), sum[3]));
    }
  }
  line.template read_row<true>(sums);
  SD_UNROLL
  for (int i = 0; i < N; ++i) line.at[i] *= own * (i == 0 ? mean : other);
  line.two_t();
  line.template write_row<false>(block.row());
  __syncthreads();
  line.template read_column<true>(block.column());
  line.two_t();
  line.template write_column<false>(block.column());
  __syncthreads();
  if (block.real()) block.finish(op, op.values(b));
}

}  // namespace softdiff::cuda
