// SPDX-License-Identifier: Apache-2.0
#include "schedule.h"

#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace softdiff_shim {

Schedule Schedule::from_environment() {
  Schedule schedule;
  const char* variable = std::getenv("SOFTDIFF_SHIM_ORDER");
  const std::string order = variable == nullptr ? "forward" : variable;
  if (order == "reverse") {
    schedule.order_ = Order::kReverse;
  } else if (order.rfind("shuffle:", 0) == 0 && order.size() > 8 &&
             order.find_first_not_of("0123456789", 8) == std::string::npos) {
    schedule.order_ = Order::kShuffle;
    schedule.seed_ = schedule.state_ = std::strtoull(order.c_str() + 8, nullptr, 10);
  } else if (order != "forward") {
    throw std::runtime_error("SOFTDIFF_SHIM_ORDER is '" + order + "': expected forward, reverse or shuffle:SEED");
  }
  return schedule;
}

uint64_t Schedule::block(uint64_t position, uint64_t blocks) const {
  if (order_ == Order::kForward) return position;
  if (order_ == Order::kReverse) return blocks - 1 - position;
  uint64_t step = (blocks * 5 / 8 + seed_ % 97) | 1;  // a permutation: a step coprime to the count
  while (std::gcd(step, blocks) != 1) step += 2;
  return static_cast<uint64_t>((static_cast<unsigned __int128>(position) * step + seed_) % blocks);
}

// splitmix64
uint64_t Schedule::random() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void Schedule::epoch() {
  warp_ = -1;
  if (order_ != Order::kShuffle) return;
  mixed_ = (random() & 1) != 0;
  std::iota(rank_.begin(), rank_.end(), 0);
  for (int i = 31; i > 0; --i) std::swap(rank_[i], rank_[random() % static_cast<uint64_t>(i + 1)]);
}

int Schedule::choose(uint32_t bits) {
  if (order_ == Order::kForward) return __builtin_ctz(bits);
  if (order_ == Order::kReverse) return 31 - __builtin_clz(bits);
  int skip = static_cast<int>(random() % static_cast<uint64_t>(__builtin_popcount(bits)));
  while (skip-- > 0) bits &= bits - 1;
  return __builtin_ctz(bits);
}

int Schedule::pick(Ready& ready) {
  if (ready.warps == 0) return -1;
  if (warp_ < 0 || ready.lanes[warp_] == 0) {
    warp_ = -1;
    if (order_ == Order::kShuffle && !mixed_) {
      for (int i = 0; warp_ < 0; ++i)
        if ((ready.warps >> rank_[i] & 1) != 0) warp_ = rank_[i];
    } else {
      warp_ = choose(ready.warps);
    }
  }
  const int warp = warp_, lane = choose(ready.lanes[warp]);
  ready.lanes[warp] &= ~(1u << lane);
  if (ready.lanes[warp] == 0) {
    ready.warps &= ~(1u << warp);
    warp_ = -1;
  }
  return warp * 32 + lane;
}

}  // namespace softdiff_shim
