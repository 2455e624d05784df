# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite, `softdiff bench`: every op beside what people write or install, and the limits.

Everything here is imported by that command alone, and by the tests, whose references the baselines are.
"""
