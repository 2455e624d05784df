// SPDX-License-Identifier: Apache-2.0
// Executes the threads of a block, or of a cluster of blocks, as fibers on one CPU thread. Threads switch only inside
// collectives.
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

struct Copy {
  void* shared;
  const void* global;
  int group;
};

enum class State { kRunnable, kWarpCollective, kBarrier, kClusterBarrier, kExited };

struct Thread {
  Fiber fiber;
  uint3 index;
  int block;                  // in the cluster
  int warp, lane;             // the warp's number in the cluster
  State state;
  bool arrived, passed;       // at the cluster's barrier: not yet open, or open before it came to wait
  Site site;                  // what it waits at
  void* record;               // what it brought there
  std::vector<Copy> copies;   // cp.async that have not landed
  int group;                  // cp.async groups committed
};

struct Warp {
  int waiting, exited, in_barrier;
  Site site;
};

struct Shared {
  std::unique_ptr<void, decltype(&std::free)> memory;
  size_t bytes;
};

struct Block {
  uint3 index;
  std::vector<Shared> shared;
  size_t shared_used = 0;
  int live = 0, at_barrier = 0, vote = 0;
  Site barrier_site{};
};

using Compute = void (*)(void* const* records);  // of 32 lanes

class Engine {
 public:
  // Runs the whole grid; throws std::runtime_error with a sentence about the first error inside the kernel.
  // `cluster` blocks that follow one another along x run together.
  void run(const void* kernel, const std::function<void()>& body, size_t shared_bytes, Schedule schedule, unsigned cluster);

  Thread& self() { return *current_; }
  // The last of 32 lanes to come runs `compute` over all lanes' records.
  void warp_collective(Site site, unsigned mask, void* record, Compute compute);
  int barrier(Site site, int vote);
  void cluster_arrive(Site site);
  void cluster_wait(Site site);
  // The same place in a shared array of the cluster's block `rank`.
  void* in_block(Site site, void* address, int rank);
  void* take_shared(Site site, int index, size_t bytes);
  // Fails unless [address, address + 16) is aligned and inside one shared array.
  void check_shared16(Site site, const void* address);
  [[noreturn]] void fail(Site site, const std::string& what);

 private:
  [[noreturn]] static void entry();
  void run_cluster(uint64_t first, unsigned blocks);
  void prepare(int threads, int blocks);
  void enter(Thread& next);
  void end_block(Block& block);
  void open_cluster_barrier();
  void suspend();
  [[noreturn]] void leave();
  Thread* pick();
  void make_runnable(Thread& thread);
  std::string where(const Thread& thread) const;
  [[noreturn]] void fail_missing(Site site, State state, int block, int warp);
  void record_error(const std::string& what);
  [[noreturn]] void abandon();

  const void* kernel_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  size_t shared_limit_ = 0;
  Schedule schedule_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  std::vector<Block> blocks_;
  Ready ready_;
  Fiber host_;
  Thread* current_ = nullptr;
  int count_ = 0;  // threads of a block
  int live_ = 0, arrived_ = 0;  // of the cluster
  std::string error_;
};

extern Engine engine;
std::string text(Site site);

}  // namespace softdiff_shim
