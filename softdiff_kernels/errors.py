# SPDX-License-Identifier: Apache-2.0
"""What the command line shows as one line, without a traceback."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def install(extra: str = "train") -> str:
    """The command that brings an extra."""
    return f'pip install "softdiff_kernels[{extra}]"'


class UserError(ValueError):
    """Something that the user can put right: a wrong path, file or flag. The message is one sentence."""


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
        # As where a package that it imports was built for another torch.
        raise UserError(f"{purpose} needs {module}, which fails to import here: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an error says, an OSError without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def bare_reason(error: Exception) -> str:
    """The same without a file's name, for a list of names and reasons."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else error
    return " ".join(str(told).split()) or type(error).__name__


@contextmanager
def user_errors(prefix: str = "") -> Iterator[None]:
    """Turns the ValueError, TypeError or OSError of a file or flag that the user gave into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, OSError) as error:
        told = reason(error)
        raise UserError(told if told.startswith(prefix) else prefix + told) from error  # a file is named once
