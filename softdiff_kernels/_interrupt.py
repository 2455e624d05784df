# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while the command line still imports torch: exit code 130 without a traceback, as it is later.

Imported before torch. Does nothing in a program that imports the library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any, NoReturn

STOPPED = "softdiff: stopped"


def _is_command() -> bool:
    """Whether this process is `softdiff` or `python -m softdiff_kernels`."""
    started = getattr(sys, "argv", [""])[:1]
    if started == ["-m"]:  # what Python sets until it has found the module, whose package comes first
        return __package__ in sys.orig_argv
    return os.path.basename("".join(started)) in ("softdiff", "softdiff.exe", "softdiff-script.py")


def _stop(*_: Any) -> NoReturn:
    # No exception: an import that catches it would turn it into an error of its own.
    with contextlib.suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(130)


def over() -> None:
    """Gives Ctrl-C back to Python: from here on it raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with contextlib.suppress(ValueError):  # handlers are set in the main thread alone
        signal.signal(signal.SIGINT, _stop)
