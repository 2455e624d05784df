// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace softdiff_shim {

// The demangled name of a function of this module, static and hidden ones included.
std::string kernel_name(const void* function);

}  // namespace softdiff_shim
