// SPDX-License-Identifier: Apache-2.0
// Marks a function that the CPU and the CUDA kernels compile from one source.
#pragma once

#if defined(__CUDACC__)
#define SOFTDIFF_HD __host__ __device__ inline
#else
#define SOFTDIFF_HD inline
#endif
