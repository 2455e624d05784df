// SPDX-License-Identifier: Apache-2.0
// Threads come from the OpenMP runtime that torch has already loaded, found by name at run time. A pool of
// our own, or a second OpenMP runtime, would fight for the cores with torch's, whose threads spin for a
// while after each of its parallel regions. Nothing is linked, so there is nothing to install either.
#include "parallel.h"

#include <atomic>
#include <thread>
#include <vector>

#include <dlfcn.h>

namespace softdiff {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel openmp() {
  static const auto found = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

struct Job {
  const std::function<void(int64_t, int64_t)>& body;
  int64_t count;
  int64_t run;  // neighbouring items taken at a time, so that one may fetch memory for the next
  std::atomic<int64_t> next{0};
};

void work(void* data) {
  Job& job = *static_cast<Job*>(data);
  for (int64_t item; (item = job.next.fetch_add(job.run, std::memory_order_relaxed)) < job.count;) {
    job.body(item, item + job.run < job.count ? item + job.run : job.count);
  }
}

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  if (threads > count) threads = static_cast<int>(count);
  if (threads <= 1) {
    body(0, count);
    return;
  }
  const int64_t shares = 8 * static_cast<int64_t>(threads);
  Job job{body, count, count > shares ? count / shares : 1};
  if (const GompParallel parallel = openmp()) {
    parallel(work, &job, static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; ++i) pool.emplace_back(work, &job);
  work(&job);
  for (std::thread& thread : pool) thread.join();
}

const char* thread_source() { return openmp() != nullptr ? "openmp" : "std::thread"; }

}  // namespace softdiff
