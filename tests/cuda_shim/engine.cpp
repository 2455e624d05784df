// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include <cstring>
#include <exception>
#include <stdexcept>

#include "include/shim_ptx.h"
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

void Engine::run(const void* kernel, const std::function<void()>& body, size_t shared_bytes, Schedule schedule) {
  const dim3 grid = indices.grid_dim, threads = indices.block_dim;
  if (current_ != nullptr) throw std::runtime_error("CUDA shim: a kernel launched a kernel");
  if (threads.x * threads.y * threads.z % 32 != 0) {
    throw std::runtime_error("CUDA shim: kernel " + kernel_name(kernel) + " was launched with blocks of " +
                             std::to_string(threads.x * threads.y * threads.z) +
                             " threads; the shim executes whole warps, multiples of 32");
  }
  kernel_ = kernel;
  body_ = &body;
  shared_limit_ = shared_bytes;
  schedule_ = schedule;
  error_.clear();
  const uint64_t plane = static_cast<uint64_t>(grid.x) * grid.y, blocks = plane * grid.z;
  for (uint64_t i = 0; i < blocks && error_.empty(); ++i) {
    const uint64_t block = schedule_.block(i, blocks);
    indices.block = {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block % plane / grid.x),
                     static_cast<unsigned>(block / plane)};
    run_block();
  }
  body_ = nullptr;
  current_ = nullptr;
  shared_.clear();
  if (error_.empty()) return;
  for (auto& thread : threads_) thread->fiber.dropped();
  throw std::runtime_error(error_);
}

void Engine::prepare(int threads) {
  const dim3 block = indices.block_dim;
  while (threads_.size() < static_cast<size_t>(threads)) threads_.push_back(std::make_unique<Thread>());
  for (int i = 0; i < threads; ++i) {
    Thread& t = *threads_[i];
    const unsigned u = static_cast<unsigned>(i);
    t.index = {u % block.x, u / block.x % block.y, u / (block.x * block.y)};
    t.warp = i / 32;
    t.lane = i % 32;
    t.record = nullptr;
    t.fiber.prepare(&Engine::entry, u * 7);
  }
  warps_.assign(threads / 32, Warp{});
  shared_.clear();
  shared_used_ = 0;
  ready_ = Ready{};
  for (int i = 0; i < threads; ++i) make_runnable(*threads_[i]);
  count_ = live_ = threads;
  at_barrier_ = 0;
}

void Engine::run_block() {
  const dim3 block = indices.block_dim;
  prepare(static_cast<int>(block.x * block.y * block.z));
  schedule_.epoch();
  Thread& first = *pick();
  current_ = &first;
  indices.thread = first.index;
  Fiber::switch_to(host_, first.fiber, false);
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
  if (warps_[me.warp].waiting > 0) fail_missing(exit, State::kWarpCollective, me.warp);
  if (at_barrier_ > 0) fail_missing(exit, State::kBarrier, -1);
  me.state = State::kExited;
  ++warps_[me.warp].exited;
  --live_;
  if (live_ == 0) abandon();
  Thread* next = pick();
  if (next == nullptr) fail(exit, "no thread can go on");
  current_ = next;
  indices.thread = next->index;
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
  current_ = next;
  indices.thread = next->index;
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
void Engine::fail_missing(Site site, State state, int warp) {
  for (int i = 0; i < count_; ++i) {
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
  if (warp.exited > 0) fail_missing(site, State::kExited, me.warp);
  if (warp.in_barrier > 0) fail_missing(site, State::kBarrier, me.warp);
  if (warp.waiting == 0) {
    warp.site = site;
  } else if (!same(warp.site, site)) {
    fail_missing(site, State::kWarpCollective, me.warp);
  }
  const int first = me.warp * 32;
  me.state = State::kWarpCollective;
  me.site = site;
  me.record = record;
  if (++warp.waiting == 32) {
    void* records[32];
    for (int i = 0; i < 32; ++i) records[i] = threads_[first + i]->record;
    compute(records);
    warp.waiting = 0;
    for (int i = first; i < first + 32; ++i) make_runnable(*threads_[i]);
  }
  suspend();
}

void Engine::barrier(Site site) {
  Thread& me = *current_;
  if (live_ < count_) fail_missing(site, State::kExited, -1);
  if (warps_[me.warp].waiting > 0) fail_missing(site, State::kWarpCollective, me.warp);
  if (at_barrier_ == 0) {
    barrier_site_ = site;
  } else if (!same(barrier_site_, site)) {
    fail_missing(site, State::kBarrier, -1);
  }
  me.state = State::kBarrier;
  me.site = site;
  ++warps_[me.warp].in_barrier;
  if (++at_barrier_ == count_) {
    at_barrier_ = 0;
    for (Warp& warp : warps_) warp.in_barrier = 0;
    for (int i = 0; i < count_; ++i) make_runnable(*threads_[i]);
    schedule_.epoch();
  }
  suspend();
}

// A heap block for each array, of exactly its size, so that ASan's redzones lie between them.
void* Engine::take_shared(Site site, int index, size_t bytes) {
  const size_t i = static_cast<size_t>(index);
  if (bytes == SIZE_MAX) fail(site, "a negative count");
  if (i < shared_.size()) {
    if (shared_[i].bytes != bytes) {
      fail(site, "array " + std::to_string(index) + " of shared memory has " + std::to_string(bytes) +
                     " bytes here and " + std::to_string(shared_[i].bytes) + " in another thread");
    }
    return shared_[i].memory.get();
  }
  const size_t used = shared_used_ + (bytes + 15) / 16 * 16;
  if (used > shared_limit_) {
    fail(site, "the arrays take " + std::to_string(used) +
                   " bytes of shared memory, the launch gave dynamicSmemBytes = " + std::to_string(shared_limit_));
  }
  shared_used_ = used;
  shared_.push_back({{std::malloc(bytes), &std::free}, bytes});
  return std::memset(shared_.back().memory.get(), 0xff, bytes);
}

void* take_shared(Site site, int index, size_t bytes) { return engine.take_shared(site, index, bytes); }

}  // namespace softdiff_shim
