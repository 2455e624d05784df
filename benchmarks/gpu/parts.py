# SPDX-License-Identifier: Apache-2.0
"""One part of the report: a command of its own, with a time limit, whose failure stops nothing else.

A part writes what it found to a JSON file as it goes, so that one that is killed leaves what it had.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# "ok"; "failed": it ended by itself with an error; "timeout": killed; "absent": it has nothing to run on.
STATUSES = ("ok", "failed", "timeout", "absent")
_GRACE = 3.0  # seconds between asking a process to stop and killing it


@dataclass
class Outcome:
    """How a part ended, what it says about it in a line, and what it found."""

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def execute(
    command: Sequence[str],
    *,
    seconds: float,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> tuple[int | None, float]:
    """Runs a command in a folder, its output into `log`; (exit status, or None where it was killed, seconds).

    The command leads a process group, which is stopped as a whole when the time is over.
    """
    start = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            cwd=folder,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _stop(process)
    return status, time.monotonic() - start


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the group: politely, then not."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def read(path: Path) -> dict[str, Any]:
    """What a part has written so far; empty where there is nothing."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Replaces the file in one step, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(data, indent=1, default=str) + "\n")
    temporary.replace(path)


def tail(text: str, lines: int = 3) -> str:
    """The last lines that say something, in one line."""
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(kept[-lines:])[-400:]


_appending = threading.Lock()


def run(
    name: str,
    command: Sequence[str],
    *,
    seconds: float,
    log: Path,
    scratch: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Outcome:
    """Runs a part, given the file for its JSON as `--out`, and appends its output to `log`.

    A part may say its own "status" and "detail" in the JSON; a bad exit status overrules "ok".
    """
    own_log, result = scratch / f"{name}.log", scratch / f"{name}.json"
    own_log.write_bytes(b"")
    full = [*command, "--out", str(result)]
    try:
        code, took = execute(full, seconds=seconds, log=own_log, environment=environment, folder=folder)
        problem = f"killed after its {seconds:.0f} s" if code is None else f"exit status {code}"
    except OSError as error:
        code, took, problem = -1, 0.0, str(error)
    text = own_log.read_text(errors="replace")
    data = read(result)
    status, detail = data.pop("status", "ok"), data.pop("detail", "")
    if code is None:
        status, detail = "timeout", problem
    elif code != 0 and status == "ok":
        status, detail = "failed", f"{problem}: {tail(text)}"
    with _appending, log.open("a") as everything:
        everything.write(f"==== {name}: {status}, {took:.1f} s: {' '.join(full)}\n{text}\n")
    return Outcome(name, status, took, detail, data)
