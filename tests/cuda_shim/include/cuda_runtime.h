// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's header of this name: kernels compiled by a host compiler, every launch executed on the CPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
// libstdc++ spells an attribute __noinline__ in here, so it must be read before the keyword becomes a macro.
#include <memory>

#include "shim_keywords.h"

#include "shim_types.h"

#include "shim_device.h"
#include "shim_host.h"
#include "shim_math.h"
