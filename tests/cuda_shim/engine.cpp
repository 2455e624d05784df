// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include <cstring>
#include <exception>
#include <stdexcept>

#include "kernel_name.h"

namespace softdiff_shim {

Indices indices;
Engine engine;

namespace {

std::string triple(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

}  // namespace

std::string text(Site site) {
  const std::string file = site.file;
  return std::string(site.what) + " (" + file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line) + ")";
}

void Engine::run(const void* kernel, const std::function<void()>& body, size_t shared_bytes, Schedule schedule,
                 unsigned cluster) {
  const dim3 grid = indices.grid_dim, threads = indices.block_dim;
  if (current_ != nullptr) throw std::runtime_error("CUDA shim: a kernel launched a kernel");
  if (threads.x * threads.y * threads.z % 32 != 0) {
    throw std::runtime_error("CUDA shim: kernel " + kernel_name(kernel) + " was launched with blocks of " +
                             std::to_string(threads.x * threads.y * threads.z) +
                             " threads; the shim executes whole warps, multiples of 32");
  }
  if (threads.x * threads.y * threads.z * cluster > 1024) {
    throw std::runtime_error("CUDA shim: kernel " + kernel_name(kernel) +
                             " was launched with clusters of more than 1024 threads, which the shim does not execute");
  }
  kernel_ = kernel;
  body_ = &body;
  shared_limit_ = shared_bytes;
  schedule_ = schedule;
  error_.clear();
  const uint64_t clusters = static_cast<uint64_t>(grid.x) * grid.y * grid.z / cluster;
  for (uint64_t i = 0; i < clusters && error_.empty(); ++i) run_cluster(schedule_.block(i, clusters) * cluster, cluster);
  body_ = nullptr;
  current_ = nullptr;
  blocks_.clear();
  if (error_.empty()) return;
  for (auto& thread : threads_) thread->fiber.dropped();
  throw std::runtime_error(error_);
}

void Engine::prepare(int threads, int blocks) {
  const dim3 block = indices.block_dim;
  const int all = threads * blocks;
  while (threads_.size() < static_cast<size_t>(all)) threads_.push_back(std::make_unique<Thread>());
  warps_.assign(all / 32, Warp{});
  ready_ = Ready{};
  for (int i = 0; i < all; ++i) {
    Thread& t = *threads_[i];
    const unsigned u = static_cast<unsigned>(i % threads);
    t.index = {u % block.x, u / block.x % block.y, u / (block.x * block.y)};
    t.block = i / threads;
    t.warp = i / 32;
    t.lane = i % 32;
    t.record = nullptr;
    t.copies.clear();
    t.group = 0;
    t.arrived = t.passed = false;
    t.fiber.prepare(&Engine::entry, static_cast<unsigned>(i) * 7);
    make_runnable(t);
  }
  count_ = threads;
  live_ = all;
  arrived_ = 0;
}

void Engine::run_cluster(uint64_t first, unsigned blocks) {
  const dim3 block = indices.block_dim, grid = indices.grid_dim;
  const uint64_t plane = static_cast<uint64_t>(grid.x) * grid.y;
  blocks_.clear();
  blocks_.resize(blocks);
  prepare(static_cast<int>(block.x * block.y * block.z), static_cast<int>(blocks));
  for (unsigned i = 0; i < blocks; ++i) {
    const uint64_t at = first + i;
    blocks_[i].index = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at % plane / grid.x),
                        static_cast<unsigned>(at / plane)};
    blocks_[i].live = count_;
  }
  schedule_.epoch();
  Thread& next = *pick();
  enter(next);
  Fiber::switch_to(host_, next.fiber, false);
}

void Engine::enter(Thread& next) {
  current_ = &next;
  indices.thread = next.index;
  indices.block = blocks_[static_cast<size_t>(next.block)].index;
}

SOFTDIFF_SHIM_BARE void Engine::entry() {
  Fiber::arrived();
  try {
    (*engine.body_)();
  } catch (const std::exception& e) {
    engine.record_error(engine.where(*engine.current_) + ": the kernel threw: " + e.what());
  } catch (...) {
    engine.record_error(engine.where(*engine.current_) + ": the kernel threw");
  }
  engine.leave();
}

SOFTDIFF_SHIM_BARE void Engine::leave() {
  if (!error_.empty()) abandon();
  Thread& me = *current_;
  const Site exit{"the kernel's end", "", 0};
  Block& block = blocks_[static_cast<size_t>(me.block)];
  if (warps_[me.warp].waiting > 0) fail_missing(exit, State::kWarpCollective, me.block, me.warp);
  if (block.at_barrier > 0) fail_missing(exit, State::kBarrier, me.block, -1);
  me.state = State::kExited;
  ++warps_[me.warp].exited;
  if (me.arrived) --arrived_;
  me.arrived = false;
  if (--block.live == 0) end_block(block);
  if (--live_ == 0) abandon();
  if (arrived_ == live_) open_cluster_barrier();  // a barrier does not wait for threads that have ended
  Thread* next = pick();
  if (next == nullptr) fail(exit, "no thread can go on");
  enter(*next);
  Fiber::switch_to(me.fiber, next->fiber, true);
  std::abort();
}

void Engine::make_runnable(Thread& thread) {
  thread.state = State::kRunnable;
  ready_.lanes[thread.warp] |= 1u << thread.lane;
  ready_.warps |= 1u << thread.warp;
}

Thread* Engine::pick() {
  const int index = schedule_.pick(ready_);
  return index < 0 ? nullptr : threads_[index].get();
}

SOFTDIFF_SHIM_BARE void Engine::suspend() {
  Thread& me = *current_;
  Thread* next = pick();
  if (next == nullptr) fail(me.site, "no thread can go on");
  if (next == &me) return;
  enter(*next);
  Fiber::switch_to(me.fiber, next->fiber, false);
}

// Back to the host for good: this block's fibers are dropped where they stand, without unwinding. Kernels own nothing
// that a destructor would have to free.
SOFTDIFF_SHIM_BARE void Engine::abandon() {
  Fiber::switch_to(current_->fiber, host_, true);
  std::abort();
}

std::string Engine::where(const Thread& thread) const {
  return "kernel " + kernel_name(kernel_) + ", block " + triple(indices.block) + ", thread " + triple(thread.index);
}

void Engine::record_error(const std::string& what) { error_ = "CUDA shim: " + what; }

void Engine::fail(Site site, const std::string& what) {
  record_error(where(*current_) + ", at " + (site.line > 0 ? text(site) : site.what) + ": " + what);
  abandon();
}

// Some thread's state shows that not all of those who have to will ever be at `site` together.
void Engine::fail_missing(Site site, State state, int block, int warp) {
  for (int i = block * count_; i < (block + 1) * count_; ++i) {
    const Thread& t = *threads_[i];
    if (&t == current_ || t.state != state || (warp >= 0 && t.warp != warp)) continue;
    fail(site, "thread " + triple(t.index) + (state == State::kExited ? " has ended" : " waits at " + text(t.site)));
  }
  fail(site, "the engine has lost count of its threads");
}

namespace {

bool same(Site a, Site b) {
  const auto equal = [](const char* p, const char* q) { return p == q || std::strcmp(p, q) == 0; };
  return a.line == b.line && equal(a.what, b.what) && equal(a.file, b.file);
}

}  // namespace

void Engine::warp_collective(Site site, unsigned mask, void* record, Compute compute) {
  Thread& me = *current_;
  Warp& warp = warps_[me.warp];
  if (mask != 0xffffffffu) fail(site, "the mask names some lanes only; the shim executes full masks");
  if (warp.exited > 0) fail_missing(site, State::kExited, me.block, me.warp);
  if (warp.in_barrier > 0) fail_missing(site, State::kBarrier, me.block, me.warp);
  if (warp.waiting == 0) {
    warp.site = site;
  } else if (!same(warp.site, site)) {
    fail_missing(site, State::kWarpCollective, me.block, me.warp);
  }
  const int first = me.warp * 32;
  me.state = State::kWarpCollective;
  me.site = site;
  me.record = record;
  if (++warp.waiting == 32) {
    void* records[32];
    for (int i = 0; i < 32; ++i) records[i] = threads_[first + i]->record;
    if (compute != nullptr) compute(records);
    warp.waiting = 0;
    for (int i = first; i < first + 32; ++i) make_runnable(*threads_[i]);
  }
  suspend();
}

int Engine::barrier(Site site, int vote) {
  Thread& me = *current_;
  Block& block = blocks_[static_cast<size_t>(me.block)];
  if (block.live < count_) fail_missing(site, State::kExited, me.block, -1);
  if (warps_[me.warp].waiting > 0) fail_missing(site, State::kWarpCollective, me.block, me.warp);
  if (block.at_barrier == 0) {
    block.barrier_site = site;
    block.vote = 0;
  } else if (!same(block.barrier_site, site)) {
    fail_missing(site, State::kBarrier, me.block, -1);
  }
  me.state = State::kBarrier;
  me.site = site;
  block.vote |= vote;
  ++warps_[me.warp].in_barrier;
  int result = 0;
  me.record = &result;
  if (++block.at_barrier == count_) {
    block.at_barrier = 0;
    for (int i = me.block * count_; i < (me.block + 1) * count_; ++i) {
      Thread& t = *threads_[i];
      warps_[t.warp].in_barrier = 0;
      *static_cast<int*>(t.record) = block.vote;
      make_runnable(t);
    }
    schedule_.epoch();
  }
  suspend();
  return result;
}

}  // namespace softdiff_shim
