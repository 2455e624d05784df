# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's command-line tools: where they are, and the numbers in what they print."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = ("/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer", "/opt/nvidia/nsight-compute/*")


def find(name: str, folders: Sequence[str] = _FOLDERS) -> str | None:
    """A tool on the PATH or where CUDA's packages put it; the last by name where there are several."""
    found = shutil.which(name)
    if found:
        return found
    for pattern in folders:
        root = Path(pattern).anchor
        matches = sorted(p / name for p in Path(root).glob(pattern.removeprefix(root)))
        for path in reversed(matches):
            if path.is_file():
                return str(path)
    return None


@dataclass(frozen=True)
class Findings:
    """What compute-sanitizer counted; None where its summary is missing, so that it did not finish."""

    errors: int | None
    first: str


def sanitizer_findings(text: str) -> Findings:
    """Errors (of memcheck) or hazards (of racecheck), and the first lines that tell of one."""
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", text)
    told = [
        line.removeprefix("=========").strip()
        for line in text.splitlines()
        if line.startswith("=========")
        and re.search(r"Invalid|Error:|Warning:|hazard|Race|Program hit", line)
    ]
    told = [line for line in told if "SUMMARY" not in line]
    return Findings(int(counts[-1]) if counts else None, " / ".join(told[:3])[:400])


def ncu_metrics(text: str) -> dict[str, dict[str, float]]:
    """kernel -> metric -> value, of `ncu --csv`. Lines around the table are the program's own output."""
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        return {}
    found: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(line for line in lines[head:] if line.startswith('"')):
        try:
            value = float(str(row["Metric Value"]).replace(",", ""))
        except (KeyError, ValueError):
            continue
        found.setdefault(str(row.get("Kernel Name")), {})[str(row.get("Metric Name"))] = value
    return found
