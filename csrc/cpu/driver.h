// SPDX-License-Identifier: Apache-2.0
// From whole batches to planes: the choice of instruction set, the scratch memory and the threads.
#pragma once

#include "../args.h"

namespace softdiff {

// Each runs on at most `threads` threads. Sizes and values are the caller's to check.
void run(const FilterArgs& args, int threads);
void run(const LossArgs& args, int threads);
void run(const TransformArgs& args, int threads);
void run(const MixArgs& args, int threads);
void run(const NormalArgs& args, int threads);

// The instruction set in use: "avx512", "avx2" or "portable".
const char* instruction_set();
// Chooses one by name; false where this machine or build lacks it.
bool use_instruction_set(const char* name);
// Where threads come from: "openmp" (the pool that torch has loaded) or "std::thread".
const char* thread_source();

}  // namespace softdiff
