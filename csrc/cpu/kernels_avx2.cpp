// SPDX-License-Identifier: Apache-2.0
#define SOFTDIFF_ISA_AVX2
#include "ops.h"
