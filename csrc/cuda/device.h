// SPDX-License-Identifier: Apache-2.0
// What the compiled module knows of itself and of the machine.
#pragma once

#include <utility>
#include <vector>

namespace softdiff::cuda {

std::vector<int> architectures();
int ptx_architecture();
int runtime_version();
int driver_version();
std::vector<std::pair<int, int>> devices();

}  // namespace softdiff::cuda
