# SPDX-License-Identifier: Apache-2.0
"""Data sets: from what `--data` names to one uint8 tensor.

    from softdiff_kernels.data import ImageSet, load_images

Read in this order: `image_set` (the tensor, and `load_images`), `sources` (the list of what can be loaded,
and its readers), `decode` (image files into an array), `labels` and `names` (what readers share). Then
`choices` (seeds and classes as options choose them) and `sample_folder` (what `softdiff sample` writes).
The other names exported here are for options: the list of sources in help texts, and `--image-size`.
"""

from .image_set import ImageOrder, ImageSet, load_images
from .sources import SOURCE_LIST, check_sides, find_source, height_and_width

__all__ = [
    "SOURCE_LIST",
    "ImageOrder",
    "ImageSet",
    "check_sides",
    "find_source",
    "height_and_width",
    "load_images",
]
