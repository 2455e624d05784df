// SPDX-License-Identifier: Apache-2.0
#include "plan_cache.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <deque>
#include <memory>
#include <vector>

namespace softdiff {
namespace {

using Complex = std::complex<double>;
constexpr double kPi = 3.14159265358979323846;

// A plan with the memory that its pointers point into.
struct Tables {
  Plan plan;
  std::deque<Level> levels;
  std::deque<Chirp> chirps;
  std::deque<std::vector<float>> floats;
  std::deque<std::vector<int32_t>> integers;
  int64_t bytes = sizeof(Tables);

  const float* keep(std::vector<float> values) { return hold(floats, std::move(values)); }
  const int32_t* keep(std::vector<int32_t> values) { return hold(integers, std::move(values)); }

 private:
  template <class T>
  const T* hold(std::deque<std::vector<T>>& all, std::vector<T> values) {
    all.push_back(std::move(values));
    bytes += static_cast<int64_t>(sizeof(std::vector<T>) + all.back().capacity() * sizeof(T));
    return all.back().data();
  }
};

struct Built {
  Level* level;
  std::vector<int32_t> position2, position4;  // places of the frequencies of DCT-II and DCT-IV
  int32_t spare;
};

// The DFT of a power of two of numbers that are `stride` apart; roots: of the whole, of which this is a `stride`-th.
void fourier(const Complex* in, int64_t stride, Complex* out, int64_t n, const std::vector<Complex>& roots) {
  if (n == 1) {
    *out = *in;
    return;
  }
  const int64_t h = n / 2;
  fourier(in, 2 * stride, out, h, roots);
  fourier(in + stride, 2 * stride, out + h, h, roots);
  for (int64_t k = 0; k < h; ++k) {
    const Complex even = out[k], odd = out[h + k] * roots[k * stride];
    out[k] = even + odd, out[h + k] = even - odd;
  }
}

// cos and sin of pi a / b, the angle reduced in integers.
Complex turn(int64_t a, int64_t b) {
  return std::polar(1.0, kPi * static_cast<double>(a % (2 * b)) / static_cast<double>(b));
}

// With theta = 2 pi a / b. Outputs for which `negated` holds change their sign.
template <class Negated>
const Chirp* chirp_tables(Tables& tables, const Built& built, int64_t n, int64_t a, int64_t b, Negated negated) {
  const int64_t m = built.level->n;
  std::vector<Complex> kernel(2 * m), roots(2 * m), transformed(2 * m);
  for (int64_t i = 0; i < 2 * m; ++i) roots[i] = std::conj(turn(i, m));
  // Even and of period 2 m. Both kernels are real and even, so are their transforms, and one carries the two.
  for (int64_t d = 0; d <= m; ++d) kernel[d] = kernel[(2 * m - d) % (2 * m)] = turn(a * d * d, b);
  fourier(kernel.data(), 1, transformed.data(), 2 * m, roots);
  std::vector<float> gains(2 * m), in(2 * n), out(2 * n);
  for (int64_t k = 0; k < m; ++k) {
    const Complex gain = transformed[k] * ((k == 0 ? 1.0 : 2.0) / static_cast<double>(m));
    const int64_t place = built.position2[k];
    gains[2 * place] = static_cast<float>(gain.real()), gains[2 * place + 1] = static_cast<float>(gain.imag());
  }
  for (int64_t i = 0; i < n; ++i) {
    const Complex t = turn(a * (2 * i + 1) * (2 * i + 1), 4 * b);
    const double scale = negated(i) ? -0.5 : 0.5;
    in[2 * i] = static_cast<float>(t.real()), in[2 * i + 1] = static_cast<float>(t.imag());
    out[2 * i] = static_cast<float>(scale * t.real()), out[2 * i + 1] = static_cast<float>(scale * t.imag());
  }
  tables.chirps.push_back({static_cast<int32_t>(n), built.level, tables.keep(std::move(gains)),
                           tables.keep(std::move(in)), tables.keep(std::move(out))});
  tables.bytes += sizeof(Chirp);
  return &tables.chirps.back();
}

Built build(Tables& tables, int32_t n, bool part);

// For the convolutions of chirps of n places: by a power of two, since the next multiple of three or five is as slow.
Built convolutions(Tables& tables, int64_t n, int32_t& spare) {
  int32_t length = 1;
  while (length < 2 * n - 1) length *= 2;
  spare = std::max(spare, 5 * length);  // three strips, and 2 n for the transform
  return build(tables, length, false);
}

void odd_two_chirps(Tables& tables, Built& out) {
  Level& level = *out.level;
  const int64_t n = level.n, sums = (n + 1) / 2;
  const Built built = convolutions(tables, sums, out.spare);
  // Row r of the chirp with theta = 4 pi / n has the cosines of frequency 2 (2r + 1), or, where that is beyond n, of
  // its mirror image, with the sign changed.
  const auto mirrored = [n](int64_t r) { return 2 * (2 * r + 1) > n; };
  for (int64_t r = 0; r < sums; ++r) {
    out.position2[2 * (mirrored(r) ? n - 2 * r - 1 : 2 * r + 1)] = static_cast<int32_t>(r);
  }
  level.chirp2_even = chirp_tables(tables, built, sums, 2, n, mirrored);
  level.chirp2_odd = chirp_tables(tables, built, n / 2, 1, n, [](int64_t) { return false; });
}

// cos(pi a / 4n) for a of one period.
std::vector<float> cosines(int64_t n) {
  std::vector<float> out(8 * n);
  for (int64_t a = 0; a < 8 * n; ++a) out[a] = static_cast<float>(turn(a, 4 * n).real());
  return out;
}

// [rows][columns]: cosine[factor(row) (2 column + 1)].
template <class Factor>
std::vector<float> matrix(const std::vector<float>& cosine, int64_t rows, int64_t columns, Factor factor) {
  std::vector<float> out(rows * columns);
  const int64_t period = static_cast<int64_t>(cosine.size());
  for (int64_t k = 0; k < rows; ++k) {
    int64_t at = factor(k) % period;
    const int64_t step = 2 * at % period;
    for (int64_t i = 0; i < columns; ++i, at = (at + step) % period) out[k * columns + i] = cosine[at];
  }
  return out;
}

void odd_tables(Tables& tables, Built& out, bool part) {
  Level& level = *out.level;
  const int64_t n = level.n, sums = (n + 1) / 2, differences = n / 2;
  // The folded DCT-II leaves its even frequencies first, then the odd ones.
  for (int32_t k = 0; k < n; ++k) {
    out.position2[k] = k % 2 == 0 ? k / 2 : static_cast<int32_t>(sums) + k / 2;
    out.position4[k] = k;
  }
  const std::vector<float> cosine = n <= kDense2 ? cosines(n) : std::vector<float>();
  if (n <= kDense2) {
    const std::vector<float> even = matrix(cosine, sums, sums, [](int64_t k) { return 4 * k; });
    std::vector<float> even_t(even.size());
    for (int64_t k = 0; k < sums; ++k) {
      for (int64_t i = 0; i < sums; ++i) even_t[i * sums + k] = even[k * sums + i];
    }
    level.dense2_even = tables.keep(even);
    level.dense2_even_t = tables.keep(std::move(even_t));
    level.dense2_odd = tables.keep(matrix(cosine, differences, differences, [](int64_t k) { return 4 * k + 2; }));
  } else {
    odd_two_chirps(tables, out);
  }
  if (!part) return;
  if (n <= kDense4) {
    level.dense4 = tables.keep(matrix(cosine, n, n, [](int64_t k) { return 2 * k + 1; }));
  } else {
    level.chirp4 = chirp_tables(tables, convolutions(tables, n, out.spare), n, 1, 2 * n, [](int64_t) { return false; });
  }
}

// `part`: whether it belongs to a longer length, which needs its DCT-IV, too.
Built build(Tables& tables, int32_t n, bool part) {
  tables.levels.emplace_back();
  tables.bytes += sizeof(Level);
  Built out{&tables.levels.back(), std::vector<int32_t>(n), std::vector<int32_t>(n), 0};
  Level& level = *out.level;
  level.n = n;
  if (n % 2 == 1) {
    odd_tables(tables, out, part);
    return out;
  }
  const int32_t h = n / 2;
  const Built half = build(tables, h, true);
  level.half = half.level;
  out.spare = half.spare;
  for (int32_t k = 0; k < h; ++k) {
    out.position2[2 * k] = half.position2[k];
    out.position2[2 * k + 1] = h + half.position4[k];
  }
  std::vector<float> rotation(2 * static_cast<size_t>(h));
  for (int64_t i = 0; i < h; ++i) {
    const Complex t = turn(2 * i + 1, 4 * int64_t{n});
    rotation[2 * i] = static_cast<float>(t.imag());
    rotation[2 * i + 1] = static_cast<float>(t.imag() / (1.0 + t.real()));
  }
  std::vector<int32_t> pairs;
  pairs.reserve(2 * static_cast<size_t>(h - 1));
  level.zero = out.position4[0] = half.position2[0];
  out.position4[n - 1] = h + half.position2[0];
  for (int32_t k = 1; k < h; ++k) {
    const int32_t u = half.position2[k], t = h + half.position2[h - k];
    pairs.push_back(u);
    pairs.push_back(t);
    out.position4[2 * k] = u;
    out.position4[2 * k - 1] = t;
  }
  level.rotation = tables.keep(std::move(rotation));
  level.pairs = tables.keep(std::move(pairs));
  return out;
}

}  // namespace

std::shared_ptr<const Plan> make_plan(int64_t length, int64_t* bytes) {
  const auto tables = std::make_shared<Tables>();
  const auto n = static_cast<int32_t>(length);
  Built built = build(*tables, n, false);
  Plan& plan = tables->plan;
  plan.n = n;
  plan.spare = built.spare;
  plan.level = built.level;
  const size_t padded = (static_cast<size_t>(n) + 15) / 16 * 16;
  std::vector<float> norm(n), norm_square(padded, 0.0f), square(padded, 0.0f), by_position(padded, 0.0f);
  std::vector<float> position_norm(padded, 0.0f);
  for (int32_t k = 0; k < n; ++k) {
    const double s2 = (k == 0 ? 1.0 : 2.0) / n;
    norm[k] = position_norm[built.position2[k]] = static_cast<float>(std::sqrt(s2));
    norm_square[k] = by_position[built.position2[k]] = static_cast<float>(s2);
    square[built.position2[k]] = static_cast<float>(k) * static_cast<float>(k);
  }
  plan.position = tables->keep(std::move(built.position2));
  plan.norm = tables->keep(std::move(norm));
  plan.position_norm = tables->keep(std::move(position_norm));
  plan.norm_square = tables->keep(std::move(norm_square));
  plan.position_square = tables->keep(std::move(square));
  plan.position_norm_square = tables->keep(std::move(by_position));
  *bytes = tables->bytes;
  return {tables, &plan};
}

}  // namespace softdiff
