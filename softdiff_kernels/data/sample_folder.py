# SPDX-License-Identifier: Apache-2.0
"""Seeds as they are written, and the folders whose images are named by them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, user_errors

MOST_SEEDS = 10_000_000
RECORD = "samples.json"
NPZ_RECORD = "record"
"""The same in an .npz: of its own images, whatever is drawn into the folder later."""
GRID = "grid.png"


def parse_numbers(text: str, flag: str) -> list[int]:
    """`0-63`, `3,5,8-10` or `7` as a list."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UserError(f"{flag}: expected a form such as 0-63, 3,5,8-10 or 7, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"{flag}: expected a range that rises, got {part.strip()!r}")
        if last >= 2**63 or last - first >= MOST_SEEDS:
            wanted = f"at most {MOST_SEEDS} seeds, each under 2^63"
            raise UserError(f"{flag}: expected {wanted}, got {part.strip()!r}")
        numbers.extend(range(first, last + 1))
    return numbers


def parse_seeds(text: str) -> list[int]:
    """The seeds of `--seeds`, each of them once: an image that counts twice would be no sample more."""
    seeds = parse_numbers(text, "--seeds")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: expected each seed once, got {text!r}")
    return seeds


def format_seeds(seeds: Iterable[int]) -> str:
    """The shortest form that `parse_seeds` reads, in rising order."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def image_name(seed: int) -> str:
    """000063.png: a seed has one name, whatever is drawn beside it."""
    return f"{seed:06d}.png"


def named_seeds(names: Iterable[str]) -> list[int]:
    """The seeds of the names that are a seed's, in rising order."""
    return sorted(int(name[:-4]) for name in names if re.fullmatch(r"\d+\.png", name))


def read_record(path: Path) -> dict[str, Any]:
    """What `softdiff sample` wrote of how its images were made; empty where it wrote nothing."""
    if not path.is_file():
        return {}
    with user_errors():
        content = path.read_bytes()
    return as_record(content, str(path))


def as_record(content: bytes, where: str) -> dict[str, Any]:
    """The record in a file's bytes; UserError where it is none."""
    try:
        record = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as what `softdiff sample` writes ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, as `softdiff sample` writes it")
    return record


def recorded_seeds(record: dict[str, Any], where: str) -> list[int]:
    """The seeds that a record names, in rising order."""
    try:
        return sorted(parse_seeds(str(record["seeds"])))
    except (KeyError, UserError):
        raise UserError(f"{where}: its {RECORD} does not tell the seeds of its images") from None


def check_record(record: dict[str, Any], there: Sequence[int], where: str) -> None:
    """Refuses images of other seeds than those that the record names: it is not theirs."""
    named = recorded_seeds(record, where)
    if sorted(there) == named:
        return
    odd = sorted(set(there) ^ set(named)) or there[:1]
    raise UserError(
        f"{where}: expected the images of the {len(named)} seeds that its {RECORD} names, got {len(there)}; "
        f"{image_name(odd[0])} is in one of the two alone, or there twice: draw them anew into another folder"
    )


def enter_folder(folder: Path, record: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Makes room for images of `seeds` in a folder; the record of these and of those that stay there.

    UserError, and nothing changed, where the folder holds images that were made otherwise, of which its one
    record would be wrong, or that have no record, and may be no samples at all.
    """
    there = {path: int(path.stem) for path in folder.glob("*.png") if named_seeds([path.name])}
    before = read_record(folder / RECORD)
    wanted = set(seeds)
    others = {seed for seed in there.values() if not before or seed not in wanted}
    if others:
        # Where the weights lie is no difference: their digest tells.
        other = [name for name in record if name != "weights" and before.get(name) != record[name]]
        if not before or other or not others.issubset(recorded_seeds(before, str(folder))):
            how = f"made otherwise ({', '.join(other)})" if before else f"without a {RECORD}"
            raise UserError(
                f"--outdir: {folder} holds {len(others)} images already, such as {image_name(min(others))}, "
                f"{how}; choose another folder, or remove them"
            )
    # So that a call that is cut short leaves too few, not those of an earlier one under its own record.
    for path, seed in there.items():
        if seed not in others:
            path.unlink(missing_ok=True)
    (folder / GRID).unlink(missing_ok=True)
    return {**record, "seeds": format_seeds(others.union(seeds))}
