// SPDX-License-Identifier: Apache-2.0
// Executes one block's threads as fibers on one CPU thread. Threads switch only inside collectives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "include/shim_device.h"
#include "schedule.h"

namespace softdiff_shim {

enum class State { kRunnable, kWarpCollective, kBarrier, kExited };

struct Thread {
  Fiber fiber;
  uint3 index;
  int warp, lane;
  State state;
  Site site;     // what it waits at
  void* record;  // what it brought there
};

struct Warp {
  int waiting, exited, in_barrier;
  Site site;
};

struct Shared {
  std::unique_ptr<void, decltype(&std::free)> memory;
  size_t bytes;
};

using Compute = void (*)(void* const* records);  // of 32 lanes

class Engine {
 public:
  // Runs the whole grid; throws std::runtime_error with a sentence about the first error inside the kernel.
  void run(const void* kernel, const std::function<void()>& body, size_t shared_bytes, Schedule schedule);

  Thread& self() { return *current_; }
  // The last of 32 lanes to come runs `compute` over all lanes' records.
  void warp_collective(Site site, unsigned mask, void* record, Compute compute);
  void barrier(Site site);
  void* take_shared(Site site, int index, size_t bytes);
  [[noreturn]] void fail(Site site, const std::string& what);

 private:
  [[noreturn]] static void entry();
  void run_block();
  void prepare(int threads);
  void suspend();
  [[noreturn]] void leave();
  Thread* pick();
  void make_runnable(Thread& thread);
  std::string where(const Thread& thread) const;
  [[noreturn]] void fail_missing(Site site, State state, int warp);
  void record_error(const std::string& what);
  [[noreturn]] void abandon();

  const void* kernel_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  size_t shared_limit_ = 0, shared_used_ = 0;
  Schedule schedule_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  std::vector<Shared> shared_;
  Ready ready_;
  Fiber host_;
  Thread* current_ = nullptr;
  int count_ = 0, live_ = 0, at_barrier_ = 0;
  Site barrier_site_{};
  std::string error_;
};

extern Engine engine;
std::string text(Site site);

}  // namespace softdiff_shim
