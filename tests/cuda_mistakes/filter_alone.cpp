// SPDX-License-Identifier: Apache-2.0
// Stands in for the other ops' launches, so that tests can build filter.cu alone.
#include "../../csrc/cuda/cuda_ops.h"

#include <stdexcept>

namespace softdiff::cuda {
namespace {

[[noreturn]] void absent() { throw std::logic_error("only blur, corrupt and the steps are in this build"); }

}  // namespace

void run(const LossArgs&, const Place&, const Plan&, float*) { absent(); }
void run(const TransformArgs&, const Place&, const Plan&) { absent(); }
void run(const MixArgs&, const Place&, const Plan&) { absent(); }
void run(const NormalArgs&, const Place&) { absent(); }

}  // namespace softdiff::cuda
