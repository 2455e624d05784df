# SPDX-License-Identifier: Apache-2.0
"""What the method is worth on real images: samplers, losses, corruptions and schedules, on one small budget.

python -m benchmarks.quality train   --data mnist-train.npz --out quality
python -m benchmarks.quality measure --data mnist-train.npz --test mnist-test.npz --out quality
python -m benchmarks.quality report  --out quality
"""
