// SPDX-License-Identifier: Apache-2.0
// Stands in for the other ops' launches and for those of lines.cu, so that tests can build corrupt.cu alone.
#include "../../csrc/cuda/cuda_ops.h"
#include "../../csrc/cuda/lines.h"

#include <stdexcept>

namespace softdiff::cuda {
namespace {

[[noreturn]] void absent() {
  throw std::logic_error("only blur, corrupt and the steps are in this build, of planes that a block holds");
}

}  // namespace

// Weak, so that corrupt.cu's own launch takes the place of the one here.
#define SOFTDIFF_ABSENT(name, Args) \
  __attribute__((weak)) void run(const char*, const Args&, const Place&, const Plan&) { absent(); }
SOFTDIFF_KERNELS(SOFTDIFF_ABSENT)
#undef SOFTDIFF_ABSENT
void run(const NormalArgs&, const Place&) { absent(); }
void launch_lines(bool, const char*, const CorruptArgs&, const Place&, int64_t, LineParameters) { absent(); }

}  // namespace softdiff::cuda
