// SPDX-License-Identifier: Apache-2.0
#define SOFTDIFF_ISA_PORTABLE
#include "ops.h"
