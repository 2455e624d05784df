// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace softdiff {
namespace {

constexpr double kPi = 3.14159265358979323846;

// cos(pi a / b) with the angle reduced in integers.
double cosine(int64_t a, int64_t b) { return std::cos(kPi * static_cast<double>(a % (2 * b)) / static_cast<double>(b)); }

// Tables are never freed: plans are few, and kernels hold bare pointers into them.
template <class T>
const T* keep(std::vector<T> values) {
  return (new std::vector<T>(std::move(values)))->data();
}

struct Built {
  Level* level;
  std::vector<int32_t> position2, position4;  // places of the frequencies of DCT-II and DCT-IV
};

void dense_tables(Level& level) {
  const int64_t n = level.n, sums = (n + 1) / 2, differences = (n - 1) / 2;
  std::vector<float> even(sums * sums), odd(differences * differences), even_t(even), odd_t(odd), four(n * n);
  for (int64_t k = 0; k < sums; ++k) {
    for (int64_t i = 0; i < sums; ++i) {
      even[k * sums + i] = even_t[i * sums + k] = static_cast<float>(cosine(2 * k * (2 * i + 1), 2 * n));
    }
  }
  for (int64_t k = 0; k < differences; ++k) {
    for (int64_t i = 0; i < differences; ++i) {
      odd[k * differences + i] = odd_t[i * differences + k] =
          static_cast<float>(cosine((2 * k + 1) * (2 * i + 1), 2 * n));
    }
  }
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t i = 0; i < n; ++i) four[k * n + i] = static_cast<float>(cosine((2 * k + 1) * (2 * i + 1), 4 * n));
  }
  level.dense2_even = keep(std::move(even));
  level.dense2_odd = keep(std::move(odd));
  level.dense2_even_t = keep(std::move(even_t));
  level.dense2_odd_t = keep(std::move(odd_t));
  level.dense4 = keep(std::move(four));
}

Built build(int32_t n) {
  Built out{new Level, std::vector<int32_t>(n), std::vector<int32_t>(n)};
  Level& level = *out.level;
  level.n = n;
  if (n % 2 == 1) {
    // The folded DCT-II leaves its even frequencies first, then the odd ones.
    for (int32_t k = 0; k < n; ++k) {
      out.position2[k] = k % 2 == 0 ? k / 2 : (n + 1) / 2 + k / 2;
      out.position4[k] = k;
    }
    dense_tables(level);
    return out;
  }
  const int32_t h = n / 2;
  const Built half = build(h);
  level.half = half.level;
  for (int32_t k = 0; k < h; ++k) {
    out.position2[2 * k] = half.position2[k];
    out.position2[2 * k + 1] = h + half.position4[k];
  }
  std::vector<float> rotation(4 * h);
  for (int32_t i = 0; i < h; ++i) {
    const double angle = kPi * (2 * i + 1) / (4.0 * n), c = std::cos(angle), s = std::sin(angle);
    const double sign = i % 2 == 0 ? 1.0 : -1.0;
    rotation[4 * i] = static_cast<float>(c);
    rotation[4 * i + 1] = static_cast<float>(s);
    rotation[4 * i + 2] = static_cast<float>(sign * s);
    rotation[4 * i + 3] = static_cast<float>(-sign * c);
  }
  std::vector<int32_t> pairs;
  out.position4[0] = half.position2[0];
  out.position4[n - 1] = h + half.position2[0];
  for (int32_t k = 1; k < h; ++k) {
    const int32_t u = half.position2[k], t = h + half.position2[h - k];
    pairs.push_back(u);
    pairs.push_back(t);
    out.position4[2 * k] = u;
    out.position4[2 * k - 1] = t;
  }
  level.rotation = keep(std::move(rotation));
  level.pairs = keep(std::move(pairs));
  return out;
}

Plan* make(int32_t n) {
  Built built = build(n);
  auto* plan = new Plan;
  plan->n = n;
  plan->level = built.level;
  const size_t padded = (static_cast<size_t>(n) + 15) / 16 * 16;
  std::vector<float> norm(n), norm_square(padded, 0.0f), square(padded, 0.0f), by_position(padded, 0.0f);
  std::vector<float> position_norm(padded, 0.0f);
  for (int32_t k = 0; k < n; ++k) {
    const double s2 = (k == 0 ? 1.0 : 2.0) / n;
    norm[k] = position_norm[built.position2[k]] = static_cast<float>(std::sqrt(s2));
    norm_square[k] = by_position[built.position2[k]] = static_cast<float>(s2);
    square[built.position2[k]] = static_cast<float>(k) * static_cast<float>(k);
  }
  plan->position = keep(std::move(built.position2));
  plan->norm = keep(std::move(norm));
  plan->position_norm = keep(std::move(position_norm));
  plan->norm_square = keep(std::move(norm_square));
  plan->position_square = keep(std::move(square));
  plan->position_norm_square = keep(std::move(by_position));
  return plan;
}

}  // namespace

const Plan* plan_of(int64_t n) {
  static std::mutex mutex;
  static auto* plans = new std::map<int64_t, const Plan*>;
  const std::lock_guard<std::mutex> lock(mutex);
  const Plan*& plan = (*plans)[n];
  if (plan == nullptr) plan = make(static_cast<int32_t>(n));
  return plan;
}

}  // namespace softdiff
