# SPDX-License-Identifier: Apache-2.0
"""The kernels, one file an op, over device functions that they share."""
