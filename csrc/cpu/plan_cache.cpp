// SPDX-License-Identifier: Apache-2.0
#include "plan_cache.h"

#include <map>
#include <mutex>
#include <vector>

#include <pthread.h>

namespace softdiff {
namespace {

struct Kept {
  std::shared_ptr<const Plan> plan;
  int64_t bytes;
  uint64_t used;  // when, in calls
};

struct Cache {
  std::mutex mutex;
  std::map<int64_t, Kept> plans;
  int64_t bytes = 0;
  int64_t limit = int64_t{64} << 20;
  uint64_t clock = 0;

  // Moves what is beyond the limit to `gone`, for the caller to free without the lock.
  void shrink(std::vector<std::shared_ptr<const Plan>>& gone) {
    while (bytes > limit) {
      auto oldest = plans.begin();
      for (auto it = plans.begin(); it != plans.end(); ++it) {
        if (it->second.used < oldest->second.used) oldest = it;
      }
      gone.push_back(oldest->second.plan);
      bytes -= oldest->second.bytes;
      plans.erase(oldest);
    }
  }

  std::shared_ptr<const Plan> find(int64_t n) {
    const auto it = plans.find(n);
    if (it == plans.end()) return nullptr;
    it->second.used = ++clock;
    return it->second.plan;
  }
};

// Made when the module is loaded, so that a fork meets no half-made static; never destroyed, since threads may still
// run when the process ends.
Cache& cache = *new Cache;

const int at_fork = pthread_atfork([] { cache.mutex.lock(); }, [] { cache.mutex.unlock(); },
                                   [] { cache.mutex.unlock(); });

}  // namespace

std::shared_ptr<const Plan> plan_of(int64_t n) {
  {
    const std::lock_guard<std::mutex> lock(cache.mutex);
    if (auto plan = cache.find(n)) return plan;
  }
  int64_t bytes = 0;
  std::shared_ptr<const Plan> made = make_plan(n, &bytes);
  std::vector<std::shared_ptr<const Plan>> gone;
  const std::lock_guard<std::mutex> lock(cache.mutex);
  if (auto plan = cache.find(n)) return plan;
  if (bytes > cache.limit) return made;
  cache.plans[n] = {made, bytes, ++cache.clock};
  cache.bytes += bytes;
  cache.shrink(gone);
  return made;
}

int64_t cache_bytes() {
  const std::lock_guard<std::mutex> lock(cache.mutex);
  return cache.bytes;
}

int64_t cache_limit() {
  const std::lock_guard<std::mutex> lock(cache.mutex);
  return cache.limit;
}

void set_cache_limit(int64_t bytes) {
  std::vector<std::shared_ptr<const Plan>> gone;
  const std::lock_guard<std::mutex> lock(cache.mutex);
  cache.limit = bytes;
  cache.shrink(gone);
}

void clear_cache() {
  std::map<int64_t, Kept> gone;
  const std::lock_guard<std::mutex> lock(cache.mutex);
  cache.plans.swap(gone);
  cache.bytes = 0;
}

}  // namespace softdiff
