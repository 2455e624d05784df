# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, or a lack of memory, while the command line imports torch: the usual exit code and message, without
a traceback.

Imported before torch. Does nothing in a program that imports the library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import TracebackType
from typing import Any, NoReturn

STOPPED = "softdiff: stopped"


def _is_command() -> bool:
    """Whether this process is `softdiff` or `python -m softdiff_kernels`."""
    started = getattr(sys, "argv", [""])[:1]
    if started == ["-m"]:  # Python sets this until it has found the module; it imports the package before
        return __package__ in sys.orig_argv
    return os.path.basename("".join(started)) in ("softdiff", "softdiff.exe", "softdiff-script.py")


def _stop(*_: Any) -> NoReturn:
    # Not an exception: code that is being imported might catch it and raise an error of its own.
    with contextlib.suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(130)


_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't start new thread")


def _failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        detail = f" ({text})" if text else ""
        line = f"softdiff: error: out of memory while torch is imported{detail}; close other programs"
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())
        os._exit(2)
    sys.__excepthook__(kind, error, trace)


def restore() -> None:
    """Restores Python's handling of Ctrl-C and errors: Ctrl-C raises KeyboardInterrupt again."""
    if sys.excepthook is _failed:
        sys.excepthook = sys.__excepthook__
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command():
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _failed
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # only the main thread can set handlers
            signal.signal(signal.SIGINT, _stop)
