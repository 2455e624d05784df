// SPDX-License-Identifier: Apache-2.0
// Stands in for the other ops' launches, so that tests can build corrupt.cu alone.
#include "../../csrc/cuda/cuda_ops.h"

#include <stdexcept>

namespace softdiff::cuda {
namespace {

[[noreturn]] void absent() { throw std::logic_error("only blur, corrupt and the steps are in this build"); }

}  // namespace

void run(const char*, const SoftScoreLossArgs&, const Place&, const Plan&) { absent(); }
void run(const char*, const Dct2Args&, const Place&, const Plan&) { absent(); }
void run(const char*, const SpectralMixArgs&, const Place&, const Plan&) { absent(); }
void run(const NormalArgs&, const Place&) { absent(); }

}  // namespace softdiff::cuda
