# SPDX-License-Identifier: Apache-2.0
"""Data sets: from what `--data` names to uint8 images, in memory or on the disk.

    from softdiff_kernels.data import ImageSet, load_images

Read in this order: `image_set` (the images, and `load_images`), `sources` (the list of what can be loaded,
and its readers), `decode` (image files into an array), `labels` and `names` (what readers share). For sets
larger than memory `packed` (files that training reads by position), `streamed` (files that are decoded when
they are needed), `kept` (what a pass over either found) and `prefetch` (reading ahead). Then `choices` (seeds
and classes as options choose them) and `sample_folder` (what `softdiff sample` writes).
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
