// SPDX-License-Identifier: Apache-2.0
// The 1-D gains of heat.h, for one plane, with the transform's normalisation folded in.
#pragma once

#include "../heat.h"
#include "passes.h"

namespace softdiff::SOFTDIFF_ISA {

struct Mask {
  int terms = 1;
  int64_t rows = 0;  // frequencies along H that are not negligible, up to a multiple of VL or to the last
};

SD_INLINE float rate_of(double tau, int64_t n) {
  const double step = 3.14159265358979323846 / static_cast<double>(n);
  const double rate = step * step * tau;
  return rate < 1e30 ? static_cast<float>(rate) : 1e30f;  // keeps the DC gain at exp(-0 * rate) = 1
}

// First frequency whose gain is below exp(-20), up to a multiple of VL, or n.
SD_INLINE int64_t kept(double tau, int64_t n) {
  const double step = 3.14159265358979323846 / static_cast<double>(n);
  const double last = __builtin_sqrt(20.0 / (step * step * tau));
  const int64_t rows = tau > 0.0 && last + 1.0 < static_cast<double>(n) ? round_up(static_cast<int64_t>(last) + 1) : n;
  return rows < n ? rows : n;
}

// k^2 and norm^2 for lanes [at, at + VL), by frequency (rows) or by position (columns).
struct Axis {
  const Plan* plan;
  bool by_position;
  SD_INLINE V square(int64_t at) const {
    if (by_position) return load(plan->position_square + at);
    V k;
    for (int i = 0; i < VL; ++i) k[i] = static_cast<float>(at + i);
    return k * k;
  }
  SD_INLINE V norm(int64_t at) const {
    return load((by_position ? plan->position_norm_square : plan->norm_square) + at);
  }
};

// C_s, or C_s - keep C_t. `again`: the gains and offsets are there already, as they are in `loss_gains`.
inline Mask corrupt_gains(Plane& p, const Heat& heat, bool again) {
  Mask mask;
  const bool constant = heat.floor != 0.0;
  mask.terms = (heat.reverse ? 2 : 1) + (constant ? 1 : 0);
  mask.rows = constant ? p.h : kept(heat.tau, p.h);
  if (again) return mask;
  set_offsets(p, mask.rows);
  const float blurred = static_cast<float>((1.0 - heat.floor) * heat.scale);
  const float flat = static_cast<float>(heat.floor * heat.scale * (heat.reverse ? heat.one_minus_keep : 1.0));
  const float one_minus_keep = static_cast<float>(heat.one_minus_keep);
  const bool forwards = heat.step >= 0.0;
  const double distance = forwards ? heat.step : -heat.step;
  for (int side = 0; side < 2; ++side) {
    const bool along_w = side == 1;
    const Axis axis{along_w ? p.plan_w : p.plan_h, along_w};
    float** gain = along_w ? p.gain_w : p.gain_h;
    const int64_t n = along_w ? p.w : p.h;
    const float rate = rate_of(heat.tau, n), step_rate = rate_of(distance, n);
    for (int64_t at = 0; at < n; at += VL) {
      const V square = axis.square(at), norm = axis.norm(at);
      V e, unused, q = splat(1.0f), lost = {};
      decay(square * rate, e, unused);
      e *= norm;
      if (heat.reverse) decay(square * step_rate, q, lost);
      V first = e, second = e * q;
      if (heat.reverse) {
        if (along_w) {
          second = forwards ? e * (lost + one_minus_keep * q) : e * lost * -1.0f;
        } else {
          first = forwards ? e * lost : e * (one_minus_keep - lost);
        }
      }
      if (along_w) first *= blurred, second *= blurred;
      store(gain[0] + at, first);
      if (heat.reverse) store(gain[1] + at, second);
      if (constant) store(gain[mask.terms - 1] + at, along_w ? norm * flat : norm);
    }
  }
  return mask;
}

// m^2 with m = (1 - floor) e + floor.
inline Mask loss_gains(Plane& p, double tau, double floor, bool again) {
  Mask mask;
  mask.terms = floor != 0.0 ? 3 : 1;
  mask.rows = floor != 0.0 ? p.h : kept(tau, p.h);
  if (again) return mask;
  set_offsets(p, mask.rows);
  const float part[3] = {static_cast<float>((1 - floor) * (1 - floor)), static_cast<float>(2 * floor * (1 - floor)),
                         static_cast<float>(floor * floor)};
  for (int side = 0; side < 2; ++side) {
    const bool along_w = side == 1;
    const Axis axis{along_w ? p.plan_w : p.plan_h, along_w};
    float** gain = along_w ? p.gain_w : p.gain_h;
    const int64_t n = along_w ? p.w : p.h;
    const float rate = rate_of(tau, n), twice = rate_of(2.0 * tau, n);
    for (int64_t at = 0; at < n; at += VL) {
      const V square = axis.square(at), norm = axis.norm(at);
      V e2, e, unused;
      decay(square * twice, e2, unused);
      store(gain[0] + at, along_w ? norm * e2 * part[0] : norm * e2);
      if (mask.terms == 1) continue;
      decay(square * rate, e, unused);
      store(gain[1] + at, along_w ? norm * e * part[1] : norm * e);
      store(gain[2] + at, along_w ? norm * part[2] : norm);
    }
  }
  return mask;
}

}  // namespace softdiff::SOFTDIFF_ISA
