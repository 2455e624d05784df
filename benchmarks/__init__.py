# SPDX-License-Identifier: Apache-2.0
"""Timings outside of `softdiff bench`, over the same engine: whole steps, workloads, a GPU."""
