# SPDX-License-Identifier: Apache-2.0
"""Progress for people: a bar on a terminal, plain lines elsewhere; and a stop that loses nothing."""

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
    """Counts steps. `bar` wants a bar; without a terminal or tqdm there are lines instead; quiet: neither."""

    def __init__(self, total: int, done: int, *, bar: bool, quiet: bool = False) -> None:
        self._bar: Any = None
        self._quiet = quiet
        bar = bar and not quiet
        if bar and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        """One step more."""
        if self._bar is not None:
            self._bar.update()

    def numbers(self, text: str, line: str) -> None:
        """The latest figures: beside the bar, or as a line of their own."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif not self._quiet:
            print(line, flush=True)

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        if self._bar is not None:
            self._bar.write(line)
        elif not self._quiet:
            print(line, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class StopFlag:
    """Set by the first Ctrl-C or SIGTERM; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.since = 0.0


ECHO = 1.0
"""Seconds in which a second signal is the first one's echo: torchrun hands on what a terminal sent to all."""


@contextmanager
def stop_on_signals(*, quiet: bool = False) -> Iterator[StopFlag]:
    """Turns the first Ctrl-C or SIGTERM into a flag, so that no step is cut in half; says so unless quiet."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(number: int, _: Any) -> None:
        if flag.signal is not None:
            if time.monotonic() - flag.since < ECHO:
                return
            raise KeyboardInterrupt
        flag.signal, flag.since = number, time.monotonic()
        if not quiet:
            # Not by print, which may be at work just now.
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping with a checkpoint; the same signal again stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
