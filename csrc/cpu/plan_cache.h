// SPDX-License-Identifier: Apache-2.0
// The plans in use: kept between calls up to a limit in bytes, the least recently used goes first.
#pragma once

#include "plan.h"

#include <cstdint>
#include <memory>

namespace softdiff {

// The longest side: beyond it the tables' 32-bit places end, and a strip takes 32 GiB.
constexpr int64_t kLongestSide = int64_t{1} << 27;

// A plan and its tables, and their bytes. Made anew; throws std::bad_alloc.
std::shared_ptr<const Plan> make_plan(int64_t n, int64_t* bytes);

// From the cache, or made. The caller's pointer keeps it alive, whatever the cache does. A plan is made outside
// the cache's lock, so that no call waits for another's tables; of two made at once one is dropped. A fork takes
// the lock first: the child finds it free.
std::shared_ptr<const Plan> plan_of(int64_t n);

int64_t cache_bytes();
int64_t cache_limit();
// Lets go of what is too much at once. A plan larger than the limit serves its call and is not kept.
void set_cache_limit(int64_t bytes);
void clear_cache();

}  // namespace softdiff
