// SPDX-License-Identifier: Apache-2.0
// From whole batches to planes: the choice of instruction set, the scratch memory and the threads.
#pragma once

#include "../args.h"

#include <new>
#include <string>

namespace softdiff {

// std::bad_alloc with a sentence.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string sentence) : sentence_(std::move(sentence)) {}
  const char* what() const noexcept override { return sentence_.c_str(); }

 private:
  std::string sentence_;
};

// Each runs on at most `threads` threads. Sizes and values are the caller's to check, but for a side beyond
// kLongestSide: std::invalid_argument. OutOfMemory is thrown before anything is written.
#define SOFTDIFF_DECLARE(name, Args) void run(const Args& args, int threads);
SOFTDIFF_KERNELS(SOFTDIFF_DECLARE)
#undef SOFTDIFF_DECLARE
void run(const NormalArgs& args, int threads);

// The instruction set in use: "avx512", "avx2" or "portable".
const char* instruction_set();
// Chooses one by name; false where this machine or build lacks it.
bool use_instruction_set(const char* name);
// Where threads come from: "openmp" (the pool that torch has loaded) or "std::thread".
const char* thread_source();

}  // namespace softdiff
