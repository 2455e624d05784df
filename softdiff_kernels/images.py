# SPDX-License-Identifier: Apache-2.0
"""Images as PNG files: one at a time, in grids, and in labelled rows."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import UserError, need
from .files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

GAP_GREY = 96
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to uint8, rounded to the nearest level, clipped: the inverse of the ops' decoding."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def to_pil(pixels: Tensor) -> Image:
    """uint8 [C, H, W] as a Pillow image: grey, grey + alpha, RGB or RGBA for C of 1 to 4."""
    pil = need("PIL.Image", "writing PNG files")
    if pixels.shape[0] not in MODES:
        raise UserError(f"a PNG takes 1 to 4 channels, got {pixels.shape[0]}")
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return pil.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def save_png(path: Path, image: Image | Tensor) -> None:
    """Writes an image, or uint8 pixels [C, H, W], whole or not at all."""
    buffer = io.BytesIO()
    (to_pil(image) if isinstance(image, Tensor) else image).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue(), sync=False)


def tile(pixels: Tensor, columns: int | None = None, *, smallest: int = 48, gap: int = 2) -> Image:
    """uint8 [N, C, H, W] as one picture, near square unless `columns` says otherwise.

    Images under `smallest` pixels are enlarged by a whole number, so that 8 x 8 digits can be seen.
    """
    pil = need("PIL.Image", "writing PNG files")
    count, channels, height, width = pixels.shape
    columns = columns or max(1, math.ceil(math.sqrt(count)))
    scale = max(1, math.ceil(smallest / max(height, width)))
    cell_w, cell_h = width * scale + gap, height * scale + gap
    rows = max(1, math.ceil(count / columns))
    grey = channels < 3
    background = GAP_GREY if grey else (GAP_GREY,) * 3
    sheet = pil.new("L" if grey else "RGB", (columns * cell_w + gap, rows * cell_h + gap), background)
    for i, image in enumerate(pixels):
        enlarged = to_pil(image).resize((width * scale, height * scale), pil.Resampling.NEAREST)
        sheet.paste(enlarged.convert(sheet.mode), (gap + i % columns * cell_w, gap + i // columns * cell_h))
    return sheet


def labelled(rows: Sequence[tuple[str, Image]], *, margin: int = 12, size: int = 18) -> Image:
    """Pictures under one another, each below its label, black on white."""
    modules = ("PIL.Image", "PIL.ImageDraw", "PIL.ImageFont")
    pil, draw, font = (need(name, "writing PNG files") for name in modules)
    try:
        face = font.load_default(size)
    except (TypeError, OSError):  # Pillow before 10.1, or built without FreeType
        face = font.load_default()
    line = size + margin
    width = max(image.width for _, image in rows) + 2 * margin
    sheet = pil.new("RGB", (width, sum(image.height + line for _, image in rows) + margin), "white")
    pen = draw.Draw(sheet)
    top = margin // 2
    for label, image in rows:
        pen.text((margin, top), label, fill="black", font=face)
        sheet.paste(image.convert("RGB"), (margin, top + line - margin // 3))
        top += image.height + line
    return sheet
