// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels as the bindings see them: raw pointers, sizes, strides, a device and its stream.
#pragma once

#include "../args.h"
#include "plan.h"

#include <cstdint>

namespace softdiff::cuda {

// Where an op runs, and the memory that the caller lends it.
struct Place {
  int device = 0;
  void* stream = nullptr;  // cudaStream_t
  const void* table_h = nullptr;
  const void* table_w = nullptr;
  float* scratch = nullptr;
  double* parts = nullptr;
  float* loss = nullptr;  // of a loss: where it leaves the loss of each image, float32 [B]
};

// Each of the kernels over planes, in the .cu file of its name. `what` is the op's name, for error messages.
#define SOFTDIFF_DECLARE(name, Args) void run(const char* what, const Args& args, const Place& place, const Plan& plan);
SOFTDIFF_KERNELS(SOFTDIFF_DECLARE)
#undef SOFTDIFF_DECLARE
void run(const NormalArgs& args, const Place& place);

}  // namespace softdiff::cuda
