# SPDX-License-Identifier: Apache-2.0
"""Progress for people (a bar on a terminal, lines elsewhere), and signals that stop a run without losing
work."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Progress:
    """Counts steps. bar: show a bar, if there are a terminal and tqdm; otherwise print lines. quiet:
    neither. unit: what is counted."""

    def __init__(self, total: int, done: int, *, bar: bool, quiet: bool = False, unit: str = "step") -> None:
        self._bar: Any = None
        self._quiet = quiet
        bar = bar and not quiet
        if bar and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, initial=done, unit=unit, unit_scale=unit == "B", dynamic_ncols=True)

    def advance(self, count: int = 1) -> None:
        """Counts steps."""
        if self._bar is not None:
            self._bar.update(count)

    def numbers(self, text: str, line: str) -> None:
        """Shows the latest figures: `text` beside the bar, or `line`."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif not self._quiet:
            print(line, flush=True)

    def say(self, line: str) -> None:
        """Prints a line, above the bar."""
        if self._bar is not None:
            self._bar.write(line)
        elif not self._quiet:
            print(line, flush=True)

    def close(self) -> None:
        """Ends the bar, which stays visible."""
        if self._bar is not None:
            self._bar.close()


class StopFlag:
    """The number and time of the first Ctrl-C or SIGTERM; signal is None before it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.since = 0.0


ECHO = 1.0
"""Seconds in which a second signal is ignored: torchrun forwards a signal that the terminal sent to all
processes."""


@contextmanager
def stop_on_signals(*, quiet: bool = False) -> Iterator[StopFlag]:
    """Records the first Ctrl-C or SIGTERM in a flag, so that no step is interrupted, and prints that unless
    quiet.

    A second signal raises KeyboardInterrupt.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def on_signal(number: int, _: Any) -> None:
        if flag.signal is not None:
            if time.monotonic() - flag.since < ECHO:
                return
            raise KeyboardInterrupt
        flag.signal, flag.since = number, time.monotonic()
        if not quiet:
            # Not print, because the signal may have interrupted a print.
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping with a checkpoint; the same signal again stops at once\n")

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
