// SPDX-License-Identifier: Apache-2.0
// The DCT of plan.h for small powers of two: straight-line code on vectors in registers.
#pragma once

#include "simd.h"

namespace softdiff::SOFTDIFF_ISA {

// Places of the frequencies for a power of two, known to the compiler; the same recursion as plan.cpp.
template <int N>
struct Places {
  int two[N] = {}, four[N] = {};
  constexpr Places() {
    if constexpr (N > 1) {
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

// The place of frequency N - k for the place of frequency k.
template <int N>
struct Mirror {
  int at[N] = {};
  constexpr Mirror() {
    constexpr Places<N> place{};
    for (int k = 1; k < N; ++k) at[place.two[k]] = place.two[N - k];
  }
};

// Cosines and sines of pi (2i + 1) / 4N, known to the compiler: as constants of whole vectors they are operands of
// the arithmetic, where a number in memory costs AVX2 an instruction for each use.
template <int N>
struct Rotation {
  float c[N] = {}, s[N] = {};
  constexpr Rotation() {
    for (int i = 0; i < N / 2; ++i) {
      const double x = 3.14159265358979323846 * (2 * i + 1) / (4.0 * N);
      double power = 1.0, cosine = 0.0, sine = 0.0;
      for (int k = 0; k < 24; k += 2) {
        const double sign = k % 4 == 0 ? 1.0 : -1.0;
        cosine += sign * power;
        power *= x / (k + 1);
        sine += sign * power;
        power *= x / (k + 2);
      }
      c[i] = static_cast<float>(cosine), s[i] = static_cast<float>(sine);
    }
  }
};

// The plane rotation i of a DCT-IV: every other one is mirrored.
SD_INLINE void rotate(int i, float c, float s, V a, V b, V& x, V& y) {
  x = a * c + b * s;
  y = i % 2 == 0 ? a * s - b * c : b * c - a * s;
}
SD_INLINE void rotate_t(int i, float c, float s, V a, V b, V& x, V& y) {
  x = i % 2 == 0 ? a * c + b * s : a * c - b * s;
  y = i % 2 == 0 ? a * s - b * c : a * s + b * c;
}

constexpr float kHalfRoot = 0.70710678118654752f;

template <int N>
struct Unrolled {
  static constexpr int h = N / 2;
  static constexpr Places<(N > 1 ? N / 2 : 1)> half{};
  static constexpr Rotation<N> r{};

  static SD_INLINE void two(V* x) {
    if constexpr (N > 1) {
#pragma GCC unroll 32
      for (int i = 0; i < (h + 1) / 2; ++i) {
        const int j = h - 1 - i;
        const V a = x[i], b = x[N - 1 - i], c = x[j], d = x[N - 1 - j];
        x[i] = a + b;
        x[j] = c + d;
        x[h + i] = a - b;
        x[h + j] = c - d;
      }
      Unrolled<h>::two(x);
      Unrolled<h>::four(x + h);
    }
  }
  static SD_INLINE void two_t(V* x) {
    if constexpr (N > 1) {
      Unrolled<h>::two_t(x);
      Unrolled<h>::four_t(x + h);
#pragma GCC unroll 32
      for (int i = 0; i < (h + 1) / 2; ++i) {
        const int j = h - 1 - i;
        const V a = x[i], b = x[h + i], c = x[j], d = x[h + j];
        x[i] = a + b;
        x[j] = c + d;
        x[N - 1 - i] = a - b;
        x[N - 1 - j] = c - d;
      }
    }
  }
  static SD_INLINE void four(V* x) {
    if constexpr (N == 1) {
      x[0] = x[0] * kHalfRoot;
    } else {
#pragma GCC unroll 32
      for (int i = 0; i < (h + 1) / 2; ++i) {
        const int j = h - 1 - i;
        const V a = x[i], b = x[N - 1 - i], c = x[j], d = x[N - 1 - j];
        rotate(i, r.c[i], r.s[i], a, b, x[i], x[h + i]);
        if (i != j) rotate(j, r.c[j], r.s[j], c, d, x[j], x[h + j]);
      }
      Unrolled<h>::two(x);
      Unrolled<h>::two(x + h);
#pragma GCC unroll 32
      for (int k = 1; k < h; ++k) {
        const int u = half.two[k], t = h + half.two[h - k];
        const V a = x[u], b = x[t];
        x[u] = a - b;
        x[t] = a + b;
      }
    }
  }
  static SD_INLINE void four_t(V* x) {
    if constexpr (N == 1) {
      x[0] = x[0] * kHalfRoot;
    } else {
#pragma GCC unroll 32
      for (int k = 1; k < h; ++k) {
        const int u = half.two[k], t = h + half.two[h - k];
        const V a = x[u], b = x[t];
        x[u] = a + b;
        x[t] = b - a;
      }
      Unrolled<h>::two_t(x);
      Unrolled<h>::two_t(x + h);
#pragma GCC unroll 32
      for (int i = 0; i < (h + 1) / 2; ++i) {
        const int j = h - 1 - i;
        const V a = x[i], b = x[h + i], c = x[j], d = x[h + j];
        rotate_t(i, r.c[i], r.s[i], a, b, x[i], x[N - 1 - i]);
        if (i != j) rotate_t(j, r.c[j], r.s[j], c, d, x[j], x[N - 1 - j]);
      }
    }
  }
};

}  // namespace softdiff::SOFTDIFF_ISA
