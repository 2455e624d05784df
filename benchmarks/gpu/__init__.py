# SPDX-License-Identifier: Apache-2.0
"""What one command finds out on a machine with an NVIDIA GPU: `make gpu-report`, see docs/gpu-report.md."""
