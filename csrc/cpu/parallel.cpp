// SPDX-License-Identifier: Apache-2.0
// Threads come from the OpenMP runtime that torch has already loaded, gomp_parallel by name at run time. A pool of
// our own, or a second OpenMP runtime, would fight for the cores with torch's, whose threads spin for a
// while after each of its parallel regions. Nothing is linked, so there is nothing to install either.
#include "parallel.h"

#include <exception>
#include <thread>
#include <vector>

#include <dlfcn.h>
#include <pthread.h>

namespace softdiff {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// A fork copies none of the pool's threads, for which GCC's OpenMP would then wait without end.
std::atomic<bool> forked{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

GompParallel openmp() {
  static const auto gomp_parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return forked.load(std::memory_order_relaxed) ? nullptr : gomp_parallel;
}

struct Job {
  const std::function<void(Items&)>& body;
  Items items;
};

void work(void* data) noexcept {
  Job& job = *static_cast<Job*>(data);
  job.body(job.items);
}

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(Items&)>& body) {
  if (count <= 0) return;
  if (threads > count) threads = static_cast<int>(count);
  // Neighbours are taken together, so that one may fetch memory for the next.
  const int64_t shares = threads <= 1 ? 1 : 8 * static_cast<int64_t>(threads);
  Job job{body, {count, count > shares ? count / shares : 1}};
  if (threads <= 1) {
    work(&job);
    return;
  }
  if (const GompParallel parallel = openmp()) {
    parallel(work, &job, static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> pool;
  try {
    pool.reserve(static_cast<size_t>(threads) - 1);
    for (int i = 1; i < threads; ++i) pool.emplace_back(work, &job);
  } catch (const std::exception&) {
    // The system gives no more threads: those that there are do it all.
  }
  work(&job);
  for (std::thread& thread : pool) thread.join();
}

const char* thread_source() { return openmp() != nullptr ? "openmp" : "std::thread"; }

}  // namespace softdiff
