// SPDX-License-Identifier: Apache-2.0
// Which runnable thread goes next: SOFTDIFF_SHIM_ORDER = forward | reverse | shuffle:SEED.
// forward and reverse run a warp up to the next block barrier before they touch another one: one thread is as far ahead
// of its neighbours as the barriers allow. shuffle draws, from barrier to barrier, either that with a random order of
// warps, or a random warp at every collective.
#pragma once

#include <array>
#include <cstdint>

namespace softdiff_shim {

// One bit a warp that has a runnable lane, and one bit a lane.
struct Ready {
  uint32_t warps = 0;
  std::array<uint32_t, 32> lanes{};
};

class Schedule {
 public:
  static Schedule from_environment();  // throws std::runtime_error on an unknown order
  uint64_t block(uint64_t position, uint64_t blocks) const;
  void epoch();  // a block starts, or a block barrier opens
  // warp * 32 + lane, or -1 when nothing can run; takes the thread's bit.
  int pick(Ready& ready);

 private:
  enum class Order { kForward, kReverse, kShuffle };
  uint64_t random();
  int choose(uint32_t bits);

  Order order_ = Order::kForward;
  uint64_t state_ = 0, seed_ = 0;
  bool mixed_ = false;       // a random warp at every collective
  int warp_ = -1;            // the warp whose lanes are being run
  std::array<int, 32> rank_{};
};

}  // namespace softdiff_shim
