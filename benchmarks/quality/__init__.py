# SPDX-License-Identifier: Apache-2.0
"""What the method is worth on real images: samplers, losses, corruptions and schedules, on a small budget."""
