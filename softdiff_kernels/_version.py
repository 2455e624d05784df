# SPDX-License-Identifier: Apache-2.0
"""The one place that holds the version; read without importing the package or torch."""

__version__ = "0.1.0"
