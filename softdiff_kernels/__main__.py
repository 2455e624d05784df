# SPDX-License-Identifier: Apache-2.0
"""`python -m softdiff_kernels`."""

import sys

from .cli import main

sys.exit(main())
