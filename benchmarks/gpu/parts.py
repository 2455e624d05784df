# SPDX-License-Identifier: Apache-2.0
"""One part of the report: a command with a time limit, whose failure does not stop the others.

A part saves its results to a JSON file as it goes, so that a part that is killed leaves what it had.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# "partial": right as far as it came; "failed": it ended by itself with an error; "timeout": killed; "absent":
# it has nothing to run on; "left out": there was no time for it.
STATUSES = ("ok", "partial", "failed", "timeout", "absent", "left out")
_FOLDERS = ("/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer", "/opt/nvidia/nsight-compute/*")
_GRACE = 3.0  # seconds between asking a process to stop and killing it
_processes: set[subprocess.Popen[bytes]] = set()  # those that `execute` waits for
_appending = threading.Lock()


@dataclass
class Outcome:
    """How a part ended, one line about it, and its results."""

    name: str
    status: str  # one of STATUSES, or "running" in a report that is saved meanwhile
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
    """Runs a command in a folder, its output into `log`; (exit status, or None if it was killed, seconds).

    The command leads a process group, which is stopped as a whole when the time is over.
    """
    start = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        _processes.add(process)
        try:
            status: int | None = process.wait(timeout=max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _processes.discard(process)
            if _signal(process, signal.SIGTERM):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_GRACE)
                _signal(process, signal.SIGKILL)
            process.wait()
    return status, time.monotonic() - start


def _signal(process: subprocess.Popen[bytes], number: int) -> bool:
    """Sends a signal to what is left of the process group; whether there was any."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def interrupt() -> None:
    """Asks every command that `execute` waits for to stop."""
    for process in list(_processes):
        _signal(process, signal.SIGTERM)


def end_with_commands() -> None:
    """Makes SIGTERM, or the end of its parent, end this process and the commands that `execute` waits for.

    These are other groups: who kills a report, or the shell that it runs in, does not reach them.
    """
    parent = os.getppid()

    def end(*_: object) -> None:
        interrupt()
        os._exit(128 + signal.SIGTERM)

    def watch_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        end()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch_parent, daemon=True).start()


def watch(
    command: Sequence[str], seconds: float, scratch: Path, **variables: str
) -> tuple[int | None, str, float]:
    """(exit status, output, seconds) of a command, which is printed with its output."""
    log = scratch / f"{threading.get_ident()}-{time.monotonic_ns()}.log"
    code, took = execute(command, seconds=seconds, log=log, environment={**os.environ, **variables})
    text = log.read_text(errors="replace")
    print(f"---- {' '.join(command)}\n{text}", flush=True)
    return code, text, took


def worst(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The worst "status" of several results."""
    statuses = [result["status"] for result in results.values()]
    return next((status for status in ("failed", "timeout", "absent") if status in statuses), "ok")


def save_text(path: Path, text: str) -> None:
    """Replaces a file by a whole one, as softdiff_kernels.files does, which imports torch first: tens of
    seconds on a machine that has never read it, in which the compilers can run already."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def save_json(path: Path, content: Any) -> None:
    """Replaces a JSON file by a whole one."""
    save_text(path, json.dumps(content, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """What a part has saved so far; empty if there is nothing."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def find(name: str, folders: Sequence[str] = _FOLDERS) -> str | None:
    """A tool on the PATH or where CUDA's packages put it; the last by name where there are several."""
    candidates = [shutil.which(name)]
    for pattern in folders:
        root = Path(pattern).anchor
        matches = sorted(folder / name for folder in Path(root).glob(pattern.removeprefix(root)))
        candidates += [str(path) for path in reversed(matches) if path.is_file()]
    return next(filter(None, candidates), None)


def end_of(log: Path, size: int = 4000) -> str:
    """The last bytes of a file that is being written; empty if there is none."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode(errors="replace")
    return ""


def tail(text: str, lines: int = 3) -> str:
    """The last lines that are not empty, in one line."""
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(kept[-lines:])[-400:]


def run(
    name: str, command: Sequence[str], *, seconds: float, log: Path, scratch: Path, **where: Any
) -> Outcome:
    """Runs a part, given the file for its JSON as `--out`, and appends its output to `log`.

    A part may give its own "status" and "detail" in the JSON; a bad exit status overrules "ok". where: the
    `environment` and the `folder` of `execute`.
    """
    own_log, result = scratch / f"{name}.log", scratch / f"{name}.json"
    own_log.write_bytes(b"")
    command = [*command, "--out", str(result)]
    try:
        code, took = execute(command, seconds=seconds, log=own_log, **where)
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
        everything.write(f"==== {name}: {status}, {took:.1f} s: {' '.join(command)}\n{text}\n")
    return Outcome(name, status, took, detail, data)
