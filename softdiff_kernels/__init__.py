# SPDX-License-Identifier: Apache-2.0
from . import reference
from .noise import NoiseKey
from .functional import *
