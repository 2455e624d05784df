# SPDX-License-Identifier: Apache-2.0
"""Timings of the ops beside what a user would otherwise write or install. `python benchmarks/run.py`."""
