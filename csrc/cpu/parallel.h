// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

namespace softdiff {

// Calls body(begin, end) for runs of items that make up [0, count), on at most `threads` threads.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t, int64_t)>& body);

const char* thread_source();

}  // namespace softdiff
