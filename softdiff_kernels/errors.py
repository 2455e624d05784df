# SPDX-License-Identifier: Apache-2.0
"""Errors that the command line reports in one line, without a traceback, and helpers to word them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType


def install(extra: str = "train") -> str:
    """The command that installs an extra."""
    return f'pip install "softdiff_kernels[{extra}]"'


class UserError(ValueError):
    """An error that the user can correct: a wrong path, file or flag. The message is one sentence."""


def need(module: str, purpose: str, extra: str = "train") -> ModuleType:
    """Imports an optional module, or raises a UserError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise UserError(f"{purpose} needs {package}, which fails to import here: {error}") from error
        raise UserError(f"{purpose} needs {package}, which is not installed: {install(extra)}") from None
    except (RuntimeError, OSError) as error:
        # For example, it imports a package that was built for another version of torch.
        raise UserError(f"{purpose} needs {module}, which fails to import here: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The message of an error; of an OSError without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def bare_reason(error: Exception) -> str:
    """The same without the name of the file, for a list of names and reasons."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else error
    return " ".join(str(message).split()) or type(error).__name__


def with_nearest(name: str, options: Iterable[str]) -> str:
    """An unknown name, followed by the most similar option if there is one: `widht (did you mean width?)`."""
    near = difflib.get_close_matches(name, list(options), n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name


@contextmanager
def user_errors(prefix: str = "", *, again: bool = False) -> Iterator[None]:
    """Turns the ValueError, TypeError or OSError of a file or flag that the user gave into a UserError.

    again: a UserError gets the prefix, too; otherwise it passes unchanged.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        if isinstance(error, UserError) and not again:
            raise
        message = reason(error)
        # The message of an OSError may begin with the file already.
        raise UserError(message if message.startswith(prefix) else prefix + message) from error
