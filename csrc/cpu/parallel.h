// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace softdiff {

// The items of a call, [0, count), for its threads to take in runs of neighbours.
class Items {
 public:
  Items(int64_t count, int64_t run) : count_(count), run_(run) {}
  bool take(int64_t& begin, int64_t& end) {
    begin = next_.fetch_add(run_, std::memory_order_relaxed);
    if (begin >= count_) return false;
    end = begin + run_ < count_ ? begin + run_ : count_;
    return true;
  }

 private:
  int64_t count_, run_;
  std::atomic<int64_t> next_{0};
};

// Calls body(items) once on each of at most `threads` threads, of which the caller's is one. `body` must not throw: an
// exception cannot leave OpenMP's threads. One that returns early leaves its items to the others.
void parallel_for(int64_t count, int threads, const std::function<void(Items&)>& body);

const char* thread_source();

}  // namespace softdiff
