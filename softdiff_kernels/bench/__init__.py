# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite, `softdiff bench`: every op beside what people write or install, and the limits.

Only that command, the scripts of benchmarks/ and the tests import it.
"""
