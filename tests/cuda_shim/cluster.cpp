// SPDX-License-Identifier: Apache-2.0
// What the blocks of a cluster do with one another: their barrier, and each other's shared memory.
#include <cstring>

#include "engine.h"
#include "include/shim_ptx.h"

namespace softdiff_shim {

void Engine::cluster_arrive(Site site) {
  Thread& me = *current_;
  if (me.arrived || me.passed) fail(site, "arrives again before it has waited");
  me.arrived = true;
  if (++arrived_ == live_) open_cluster_barrier();
}

void Engine::cluster_wait(Site site) {
  Thread& me = *current_;
  if (!me.arrived && !me.passed) fail(site, "waits without having arrived");
  if (warps_[me.warp].waiting > 0) fail_missing(site, State::kWarpCollective, me.block, me.warp);
  me.site = site;
  if (me.passed) {
    me.passed = false;
    return;
  }
  me.state = State::kClusterBarrier;
  suspend();
}

void Engine::open_cluster_barrier() {
  if (arrived_ == 0) return;
  arrived_ = 0;
  for (int i = 0; i < count_ * static_cast<int>(blocks_.size()); ++i) {
    Thread& t = *threads_[i];
    if (!t.arrived) continue;
    t.arrived = false;
    t.passed = t.state != State::kClusterBarrier;
    if (!t.passed) make_runnable(t);
  }
  schedule_.epoch();
}

// Shared memory ends with its block: what a peer still reads is NaN, and an error under ASan.
void Engine::end_block(Block& block) {
  for (Shared& array : block.shared) {
#if defined(__SANITIZE_ADDRESS__)
    array.memory.reset();
#else
    std::memset(array.memory.get(), 0xff, array.bytes);
#endif
  }
}

void* Engine::in_block(Site site, void* address, int rank) {
  if (rank < 0 || static_cast<size_t>(rank) >= blocks_.size()) {
    fail(site, "block " + std::to_string(rank) + " of a cluster of " + std::to_string(blocks_.size()));
  }
  const Block &mine = blocks_[static_cast<size_t>(current_->block)], &theirs = blocks_[static_cast<size_t>(rank)];
  const auto at = reinterpret_cast<uintptr_t>(address);
  for (size_t i = 0; i < mine.shared.size(); ++i) {
    const auto begin = reinterpret_cast<uintptr_t>(mine.shared[i].memory.get());
    if (at < begin || at >= begin + mine.shared[i].bytes) continue;
    if (i >= theirs.shared.size()) fail(site, "the other block has not begun");
    if (theirs.live == 0) fail(site, "the other block has ended");
    if (theirs.shared[i].bytes != mine.shared[i].bytes) fail(site, "the other block's array has another size");
    return static_cast<char*>(theirs.shared[i].memory.get()) + (at - begin);
  }
  fail(site, "the address is not in this block's shared memory");
}

void cluster_arrive(Site site) { engine.cluster_arrive(site); }
void cluster_wait(Site site) { engine.cluster_wait(site); }
void* in_block(Site site, void* address, int rank) { return engine.in_block(site, address, rank); }

}  // namespace softdiff_shim
