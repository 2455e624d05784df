# SPDX-License-Identifier: Apache-2.0
"""Adapters to other libraries. Each is imported only where it is used; the rest of the package needs none."""
