// SPDX-License-Identifier: Apache-2.0
// CUDA's keywords. __shared__ is absent on purpose: shared memory goes through Arena (shim_ptx.h), which can check it.
#pragma once

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))
