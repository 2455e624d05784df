# SPDX-License-Identifier: Apache-2.0
"""The GPU report: `make gpu-report`, docs/gpu-report.md."""
