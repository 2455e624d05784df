// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

namespace softdiff {

// Calls body(item) for every item in [0, count), on at most `threads` threads.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body);

const char* thread_source();

}  // namespace softdiff
