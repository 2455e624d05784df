// SPDX-License-Identifier: Apache-2.0
// The DCT of cpu/plan.h for lengths that the compiler knows: straight-line code on numbers in registers. The CPU kernels
// take it with a vector of columns for each number, the CUDA kernels with a float for each.
//
// The includer says for whom: SOFTDIFF_ISA (a namespace of its own for each), SD_INLINE, and SD_UNROLL before a loop
// that is unrolled whole, so that places are constants and reordering is no work.
#pragma once

namespace softdiff::SOFTDIFF_ISA {

// Places of the frequencies, known to the compiler; the same recursion as plan.cpp. `two` holds them for the DCT-II,
// `four` for the DCT-IV.
template <int N>
struct Places {
  int two[N] = {}, four[N] = {};
  SD_INLINE constexpr Places() {
    if constexpr (N % 2 == 1) {
      for (int k = 0; k < N; ++k) two[k] = k % 2 == 0 ? k / 2 : (N + 1) / 2 + k / 2, four[k] = k;
    } else {
      constexpr int h = N / 2;
      constexpr Places<h> half{};
      for (int k = 0; k < h; ++k) {
        two[2 * k] = half.two[k];
        two[2 * k + 1] = h + half.four[k];
      }
      four[0] = half.two[0];
      four[N - 1] = h + half.two[0];
      for (int k = 1; k < h; ++k) {
        four[2 * k] = half.two[k];
        four[2 * k - 1] = h + half.two[h - k];
      }
    }
  }
};

// The frequency at each place of the DCT-II.
template <int N>
struct Frequencies {
  int at[N] = {};
  SD_INLINE constexpr Frequencies() {
    constexpr Places<N> place{};
    for (int k = 0; k < N; ++k) at[place.two[k]] = k;
  }
};

// The place of frequency N - k for the place of frequency k.
template <int N>
struct Mirror {
  int at[N] = {};
  SD_INLINE constexpr Mirror() {
    constexpr Places<N> place{};
    for (int k = 1; k < N; ++k) at[place.two[k]] = place.two[N - k];
  }
};

// cos(pi a / b) and sin(pi a / b), known to the compiler: as constants they are operands of the arithmetic, where a number in
// memory costs AVX2 an instruction for each use.
struct Turn {
  double cosine = 0.0, sine = 0.0;
  SD_INLINE constexpr Turn(long long a, long long b) {
    // To the nearest quarter turn and a rest within an eighth: x in [-pi/4, pi/4].
    a = (a % (2 * b) + 2 * b) % (2 * b);
    const long long quarter = (4 * a + b) / (2 * b);
    const double x = 3.14159265358979323846 * static_cast<double>(2 * a - quarter * b) / (2.0 * static_cast<double>(b));
    double power = 1.0, c = 0.0, s = 0.0;
    for (int k = 0; k < 20; k += 2) {
      const double sign = k % 4 == 0 ? 1.0 : -1.0;
      c += sign * power;
      power *= x / (k + 1);
      s += sign * power;
      power *= x / (k + 2);
    }
    const bool swapped = quarter % 2 == 1;
    const double p = swapped ? s : c, q = swapped ? c : s;
    cosine = quarter % 4 == 1 || quarter % 4 == 2 ? -p : p;
    sine = quarter % 4 >= 2 ? -q : q;
  }
};

// Of the rotations by pi (2i + 1) / 4N before the halves of a DCT-IV: the sine, and the tangent of half the angle.
template <int N>
struct Rotation {
  float sine[N] = {}, half[N] = {};
  SD_INLINE constexpr Rotation() {
    for (int i = 0; i < N / 2; ++i) {
      const Turn t(2 * i + 1, 4 * N);
      sine[i] = static_cast<float>(t.sine), half[i] = static_cast<float>(t.sine / (1.0 + t.cosine));
    }
  }
};

// x = a cos + b sin, y = a sin - b cos, by lifting: three multiply-adds, each of the result of the one before, where the
// products would take four operations. Its own inverse and transpose.
template <class T>
SD_INLINE void reflect(float sine, float half, T a, T b, T& x, T& y) {
  const T u = a + b * half;
  y = u * sine - b;
  x = u - y * half;
}

// The same with y negated, and its transpose: every other rotation of a DCT-IV is mirrored.
template <class T>
SD_INLINE void rotate(int i, float sine, float half, T a, T b, T& x, T& y) {
  if (i % 2 == 0) return reflect(sine, half, a, b, x, y);
  const T u = a + b * half;
  y = b - u * sine;
  x = u + y * half;
}
template <class T>
SD_INLINE void rotate_t(int i, float sine, float half, T a, T b, T& x, T& y) {
  if (i % 2 == 0) return reflect(sine, half, a, b, x, y);
  const T u = a - b * half;
  y = u * sine + b;
  x = u - y * half;
}

// Dense products of an odd length's parts, cosines[factor(k) (2i + 1)].
template <int N, bool kFour>
struct Dense {
  static constexpr int sums = (N + 1) / 2, differences = N / 2;
  float even[sums * sums] = {}, odd[N == 1 ? 1 : differences * differences] = {}, whole[kFour ? N * N : 1] = {};
  SD_INLINE constexpr Dense() {
    for (int k = 0; k < sums; ++k) {
      for (int i = 0; i < sums; ++i) even[k * sums + i] = static_cast<float>(Turn(2 * k * (2 * i + 1), 2 * N).cosine);
    }
    for (int k = 0; k < differences; ++k) {
      for (int i = 0; i < differences; ++i) {
        odd[k * differences + i] = static_cast<float>(Turn((2 * k + 1) * (2 * i + 1), 2 * N).cosine);
      }
    }
    if constexpr (kFour) {
      for (int k = 0; k < N; ++k) {
        for (int i = 0; i < N; ++i) whole[k * N + i] = static_cast<float>(Turn((2 * k + 1) * (2 * i + 1), 4 * N).cosine);
      }
    }
  }
};

// The DCT-II without its normalisation, its transpose, the DCT-IV and its transpose, in place; frequencies at `Places`.
template <class T, int N>
struct Unrolled {
  static constexpr int h = N / 2;

  static SD_INLINE void two(T* x) {
    if constexpr (N % 2 == 1) {
      odd_two(x);
    } else {
      fold(x);
      Unrolled<T, h>::two(x);
      Unrolled<T, h>::four(x + h);
    }
  }

  static SD_INLINE void two_t(T* x) {
    if constexpr (N % 2 == 1) {
      odd_two_t(x);
    } else {
      Unrolled<T, h>::two_t(x);
      Unrolled<T, h>::four_t(x + h);
      unfold(x);
    }
  }

  // The DCT-II, `mask(place, count)` for all places, and its transpose: one part of the spectrum after the other, there,
  // masked and back, so that the compiler finds fewer registers in use at a time.
  template <class Mask>
  static SD_INLINE void filter(T* x, int place, Mask mask) {
    if constexpr (N % 2 == 1 || N <= 16) {
      two(x);
      mask(place, N);
      two_t(x);
    } else {
      fold(x);
      Unrolled<T, h>::filter(x, place, mask);
      Unrolled<T, h>::four(x + h);
      mask(place + h, h);
      Unrolled<T, h>::four_t(x + h);
      unfold(x);
    }
  }

  static SD_INLINE void four(T* x) {
    if constexpr (N % 2 == 1) {
      odd_four(x);
    } else {
      constexpr Rotation<N> r{};
      SD_UNROLL
      for (int i = 0; i < (h + 1) / 2; ++i) {
        const int j = h - 1 - i;
        const T a = x[i], b = x[N - 1 - i], c = x[j], d = x[N - 1 - j];
        rotate(i, r.sine[i], r.half[i], a, b, x[i], x[h + i]);
        if (i != j) rotate(j, r.sine[j], r.half[j], c, d, x[j], x[h + j]);
      }
      Unrolled<T, h>::two(x);
      Unrolled<T, h>::two(x + h);
      constexpr Places<h> half{};
      SD_UNROLL
      for (int k = 1; k < h; ++k) {
        const int u = half.two[k], t = h + half.two[h - k];
        const T a = x[u], b = x[t];
        x[u] = a - b;
        x[t] = a + b;
      }
    }
  }

  static SD_INLINE void four_t(T* x) {
    if constexpr (N % 2 == 1) {
      odd_four(x);
    } else {
      constexpr Places<h> half{};
      SD_UNROLL
      for (int k = 1; k < h; ++k) {
        const int u = half.two[k], t = h + half.two[h - k];
        const T a = x[u], b = x[t];
        x[u] = a + b;
        x[t] = b - a;
      }
      Unrolled<T, h>::two_t(x);
      Unrolled<T, h>::two_t(x + h);
      constexpr Rotation<N> r{};
      SD_UNROLL
      for (int i = 0; i < (h + 1) / 2; ++i) {
        const int j = h - 1 - i;
        const T a = x[i], b = x[h + i], c = x[j], d = x[h + j];
        rotate_t(i, r.sine[i], r.half[i], a, b, x[i], x[N - 1 - i]);
        if (i != j) rotate_t(j, r.sine[j], r.half[j], c, d, x[j], x[N - 1 - j]);
      }
    }
  }

 private:
  // Sums and differences of mirrored numbers, and their transpose.
  static SD_INLINE void fold(T* x) {
    SD_UNROLL
    for (int i = 0; i < (h + 1) / 2; ++i) {
      const int j = h - 1 - i;
      const T a = x[i], b = x[N - 1 - i], c = x[j], d = x[N - 1 - j];
      x[i] = a + b;
      x[j] = c + d;
      x[h + i] = a - b;
      x[h + j] = c - d;
    }
  }
  static SD_INLINE void unfold(T* x) {
    SD_UNROLL
    for (int i = 0; i < (h + 1) / 2; ++i) {
      const int j = h - 1 - i;
      const T a = x[i], b = x[h + i], c = x[j], d = x[h + j];
      x[i] = a + b;
      x[j] = c + d;
      x[N - 1 - i] = a - b;
      x[N - 1 - j] = c - d;
    }
  }

  // y = M x for a matrix [kRows][kRows], or its transpose.
  template <int kRows, bool kTransposed>
  static SD_INLINE void product(const float* m, const T* x, T* y) {
    SD_UNROLL
    for (int k = 0; k < kRows; ++k) {
      T sum = x[0] * m[kTransposed ? k : k * kRows];
      SD_UNROLL
      for (int i = 1; i < kRows; ++i) sum = sum + x[i] * m[kTransposed ? i * kRows + k : k * kRows + i];
      y[k] = sum;
    }
  }

  static SD_INLINE void odd_two(T* x) {
    constexpr Dense<N, false> m{};
    T in[N];
    SD_UNROLL
    for (int i = 0; i < h; ++i) in[i] = x[i] + x[N - 1 - i], in[h + 1 + i] = x[i] - x[N - 1 - i];
    in[h] = x[h];
    product<h + 1, false>(m.even, in, x);
    if constexpr (h > 0) product<h, false>(m.odd, in + h + 1, x + h + 1);
  }

  static SD_INLINE void odd_two_t(T* x) {
    constexpr Dense<N, false> m{};
    T out[N];
    product<h + 1, true>(m.even, x, out);
    if constexpr (h > 0) product<h, true>(m.odd, x + h + 1, out + h + 1);
    SD_UNROLL
    for (int i = 0; i < h; ++i) x[i] = out[i] + out[h + 1 + i], x[N - 1 - i] = out[i] - out[h + 1 + i];
    x[h] = out[h];
  }

  static SD_INLINE void odd_four(T* x) {
    constexpr Dense<N, true> m{};
    T in[N];
    SD_UNROLL
    for (int i = 0; i < N; ++i) in[i] = x[i];
    product<N, false>(m.whole, in, x);
  }
};

}  // namespace softdiff::SOFTDIFF_ISA
