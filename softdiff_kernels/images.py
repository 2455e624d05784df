# SPDX-License-Identifier: Apache-2.0
"""Images: between uint8 and [-1, 1], in pieces of bounded size, and as PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _arguments as args
from .errors import UserError, need
from .files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

GAP_GREY = 96
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# Elements in a piece. On a CPU the piece and what is computed from it then stay in the caches: the power
# spectrum of 1,000 images of 64 px takes half the time.
_PIECE_ELEMENTS = {"cpu": 2**19}
_PIECE_ELEMENTS_ELSEWHERE = 2**22


def decode(x: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]: `x / 127.5 - 1`. Other images unchanged."""
    return x.float() / 127.5 - 1.0 if x.dtype == torch.uint8 else x


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to uint8 on the CPU, rounded to the nearest level and clipped: the inverse of `decode`."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def pieces(op: str, batches: Iterable[Any]) -> Iterator[Tensor]:
    """float32 images [b, C, H, W] in [-1, 1], in pieces of bounded size, at least one image each.

    batches: an iterable of batches [B, C, H, W], uint8 (decoded) or floating-point. Of a tuple or list, such
    as a DataLoader yields, the first entry is used. Raises ValueError or TypeError if a batch is something
    else, or if its images differ in size from the first ones. op: the caller, for the message.
    """
    if isinstance(batches, Tensor):
        raise TypeError(f"{op}: expected an iterable of batches [B, C, H, W], got a {args.describe(batches)}")
    shape: tuple[int, ...] | None = None
    for index, batch in enumerate(batches):
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        images = images if isinstance(images, Tensor) else torch.as_tensor(images)
        args.image(op, f"batch {index}", images, uint8=True)
        if shape is None:
            shape = tuple(images.shape[1:])
        elif tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"{op}: expected images of one size, got {list(images.shape[1:])} in batch {index} "
                f"after {list(shape)}"
            )
        most = _PIECE_ELEMENTS.get(images.device.type, _PIECE_ELEMENTS_ELSEWHERE)
        for piece in images.split(max(1, most // max(1, images[:1].numel()))):
            if piece.shape[0]:
                yield decode(piece).float()


def to_pil(pixels: Tensor) -> Image:
    """uint8 [C, H, W] as a Pillow image: grey, grey + alpha, RGB or RGBA for C of 1 to 4."""
    pil = need("PIL.Image", "writing PNG files")
    if pixels.shape[0] not in MODES:
        raise UserError(f"a PNG takes 1 to 4 channels, got {pixels.shape[0]}")
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return pil.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def png_bytes(image: Image | Tensor) -> bytes:
    """An image, or uint8 pixels [C, H, W], as the bytes of a PNG file."""
    buffer = io.BytesIO()
    (to_pil(image) if isinstance(image, Tensor) else image).save(buffer, format="PNG")
    return buffer.getvalue()


def at_most(png: bytes, width: int) -> bytes:
    """A PNG file, made smaller where it is wider. UserError for one that is cut short or something else."""
    pil = need("PIL.Image", "reading PNG files")
    try:
        with pil.open(io.BytesIO(png), formats=("PNG",)) as image:
            image.load()
            if image.width <= width:
                return png
            height = max(1, round(image.height * width / image.width))
            return png_bytes(image.resize((width, height), pil.Resampling.LANCZOS))
    except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
        raise UserError(f"expected a whole PNG file, got another one ({error})") from error


def save_png(path: Path, image: Image | Tensor) -> None:
    """Writes an image, or uint8 pixels [C, H, W], as a PNG file: whole or not at all."""
    write_atomically(path, png_bytes(image), sync=False)


def tile(pixels: Tensor, columns: int | None = None, *, smallest: int = 48, gap: int = 2) -> Image:
    """uint8 [N, C, H, W] as one picture of rows and columns, nearly square if `columns` is not given.

    Images smaller than `smallest` pixels are enlarged by a whole factor, so that 8 x 8 digits are visible.
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
    """Pictures below one another, each with its label above it, black on white."""
    modules = ("PIL.Image", "PIL.ImageDraw")
    pil, draw = (need(name, "writing PNG files") for name in modules)
    face = _face(size)
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


def labelled_grid(
    cells: Sequence[Sequence[Image]],
    rows: Sequence[str],
    columns: Sequence[str],
    notes: Sequence[str] = (),
    *,
    margin: int = 14,
    size: int = 18,
) -> Image:
    """Pictures of one size in rows and columns, black on white, with labels at the left and above.

    notes: lines over all of it. A row's label may have several lines."""
    modules = ("PIL.Image", "PIL.ImageDraw")
    pil, draw = (need(name, "writing PNG files") for name in modules)
    face, line = _face(size), size + margin // 2
    ruler = draw.Draw(pil.new("L", (1, 1)))

    def width(text: str) -> int:
        return math.ceil(max((ruler.textlength(part, font=face) for part in text.split("\n")), default=0.0))

    wide, high = cells[0][0].size
    wide = max(wide, *(width(label) for label in columns)) + margin
    high = max(high, *(line * len(label.split("\n")) for label in rows)) + margin
    left = max(map(width, rows)) + 2 * margin
    top = margin + line * (len(notes) + 1) + margin // 2
    full = max(left + wide * len(columns), *(width(note) + 2 * margin for note in notes), 0)
    sheet = pil.new("RGB", (full, top + high * len(rows)), "white")
    pen = draw.Draw(sheet)
    for place, note in enumerate(notes):
        pen.text((margin, margin + place * line), note, fill="black", font=face)
    for place, label in enumerate(columns):
        pen.text((left + place * wide, top - line), label, fill="black", font=face)
    for row, (label, images) in enumerate(zip(rows, cells, strict=True)):
        for place, part in enumerate(label.split("\n")):
            pen.text((margin, top + row * high + place * line), part, fill="black", font=face)
        for place, image in enumerate(images):
            sheet.paste(image.convert("RGB"), (left + place * wide, top + row * high))
    return sheet


def _face(size: int) -> Any:
    font = need("PIL.ImageFont", "writing PNG files")
    try:
        return font.load_default(size)
    except (TypeError, OSError):  # Pillow before 10.1, or built without FreeType
        return font.load_default()
