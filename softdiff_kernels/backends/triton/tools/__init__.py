# SPDX-License-Identifier: Apache-2.0
"""Tools for the Triton kernels that nobody needs at run time: compiling ahead of time, and tuning."""
