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
};

void run(const char* what, const FilterArgs& args, const Place& place, const Plan& plan);
// Leaves the loss of each image in `loss`, float32 [B].
void run(const LossArgs& args, const Place& place, const Plan& plan, float* loss);
void run(const TransformArgs& args, const Place& place, const Plan& plan);
void run(const MixArgs& args, const Place& place, const Plan& plan);
void run(const NormalArgs& args, const Place& place);

}  // namespace softdiff::cuda
