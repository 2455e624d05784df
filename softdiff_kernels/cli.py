# SPDX-License-Identifier: Apache-2.0
"""The command line: chooses the command, reads its options with tyro, and reports errors in one line.

The commands and their options are in `softdiff_kernels.commands`. `softdiff doctor`, `--help` and `--version`
need the standard library and torch only.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from . import _interrupt
from ._version import __version__
from .commands import COMMANDS
from .errors import UserError, need, reason
from .files import expanded
from .memory import is_out_of_memory, out_of_memory

HELP = {"-h", "--help"}
Options = TypeVar("Options")


def usage() -> str:
    """The text of `softdiff --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "softdiff COMMAND --help lists its options; softdiff --version prints the versions"]
    return "\n".join(["usage: softdiff COMMAND [OPTIONS]", "", *lines])


def parse(
    options: type[Options],
    command: str,
    argv: Sequence[str],
    default: Options | None = None,
    *,
    positional: bool = False,
) -> Options:
    """Reads flags into a dataclass, with ~ in paths as the home folder. UserError for a wrong flag.

    default: the options that the flags override. positional: an option without a default has no flag.
    """
    tyro = need("tyro", f"softdiff {command}")
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            extra: dict[str, Any] = {} if default is None else {"default": default}
            if positional:
                extra["config"] = (tyro.conf.PositionalRequiredArgs,)
            result: Options = tyro.cli(options, prog=f"softdiff {command}", args=list(argv), **extra)
            return expanded(result)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_sentence(message.getvalue(), command)) from None


_KINDS = (
    (r"(?:invalid literal for int|no type matching \S*\bINT\b)", "a whole number"),
    (r"(?:could not convert string to float|no type matching \S*\bFLOAT\b)", "a number"),
    (r"Could not find valid parse", "numbers with spaces between"),
)
"""How the messages of tyro for a value of the wrong type begin, and what the option expects."""


def _sentence(box: str, command: str) -> str:
    """The message of tyro in one line: without its box (of lines, or of dashes where the encoding of the
    terminal has no lines), its title and its pointer to the help.

    tyro has no public way to get the message itself: 0.9.35 and 1.0.0 only print the box and exit, and the
    hook of 1.0.17, `tyro._errors.on_parse_error`, is private and documented as such.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│╭╮╰╯ ").strip("─").strip() for line in plain.splitlines()]
    lines = [line for line in lines if line.strip("-")][1:]
    pointer = next((i for i, line in enumerate(lines) if line.startswith("For full helptext")), len(lines))
    text = " ".join(" ".join(lines[:pointer]).split())
    text = re.sub(r"^Error parsing \w+: ", "", text)  # a message of the dataclass itself
    for pattern, wanted in _KINDS:
        if match := re.match(rf"Error parsing (--[\w-]+): {pattern}.*?(?:\[(.*?)\]|('.*?'))", text):
            text = f"{match[1]}: expected {wanted}, got {match[2] or match[3]}"
    if match := re.match(r"invalid choice (.*) for argument '(--[\w-]+)'\. Expected one of \((.*)\)", text):
        choices = match[3].replace("'", "").split(", ")
        if "None" in choices:  # of an optional choice, tyro lists the values in no fixed order
            choices = sorted(c for c in choices if c != "None")
        text = f"{match[2]}: expected one of {', '.join(choices)}, got {match[1]}"
    text = text.partition(" Argument helptext:")[0]
    return f"{text or 'the options cannot be read'} (softdiff {command} --help lists them)"


def version() -> str:
    """The text of `softdiff --version`."""
    import torch

    return f"softdiff_kernels {__version__}, torch {torch.__version__}"


def _check_variables() -> None:
    """Raises UserError for invalid values of the ops' environment variables, before any work."""
    from .backends import chosen
    from .caches import limit

    try:
        limit()
        chosen()
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error


def run_command(name: str, argv: Sequence[str]) -> int:
    """Reads the options of a command and runs it; returns its exit code."""
    command = COMMANDS[name]
    asks_help = bool(HELP & set(argv))
    if name != "doctor" and not asks_help:
        _check_variables()
    if command.options is None:
        if asks_help:
            print(f"usage: softdiff {name}\n\n{command.help}")
            return 0
        code: int = command.load().run(argv)
        return code
    module = command.load()
    default = None
    if command.prepare is not None and not asks_help:
        argv, default = getattr(module, command.prepare)(argv)
    options: type[Any] = getattr(module, command.options)
    config = parse(options, name, argv, default, positional=command.positional)
    code = getattr(module, command.run)(config, argv)
    return code


def _choose(words: Sequence[str]) -> int:
    if not words or words[0] in (*HELP, "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version", "version"):
        print(version())
        return 0
    length = 2 if " ".join(words[:2]) in COMMANDS and len(words) > 1 else 1
    name = " ".join(words[:length])
    if name not in COMMANDS:
        raise UserError(f"expected a command ({', '.join(COMMANDS)}), got {words[0]!r}")
    return run_command(name, words[length:])


def _lost_output() -> OSError | None:
    """Flushes standard output, and returns the error if that fails. The rest of the output is then discarded;
    otherwise Python would try again at exit and print its own message."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _message_for(error: Exception) -> str:
    """The message for an error of the machine; any other error is raised again, with its traceback."""
    if is_out_of_memory(error):
        return out_of_memory(error)
    if isinstance(error, OSError):
        return reason(error)
    raise error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 2, with one line on stderr, for an error that the user can
    correct; 130 after Ctrl-C; 1, without a message, where the reader of a pipe has closed it."""
    _interrupt.restore()
    with contextlib.suppress(AttributeError, ValueError):  # for names that the terminal cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code, message = 2, ""
    lost: OSError | None = None
    try:
        code = _choose(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as stop:  # from the parser, after it has printed its help
        if stop.code not in (0, None):
            raise
        code = 0
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        code, message = 130, _interrupt.STOPPED
    except OSError as error:
        # Without a file name it comes from an unbuffered standard output.
        output = error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)
        lost, message = error if output else None, _message_for(error)
    except Exception as error:
        message = _message_for(error)
    lost = _lost_output() or lost
    if isinstance(lost, BrokenPipeError):
        return 1
    if lost is not None:
        code, message = 2, f"cannot write to standard output: {reason(lost)}"
    if message and code == 2:
        rank = os.environ.get("RANK")
        program = f"softdiff (process {rank})" if rank else "softdiff"
        message = f"{program}: error: {' '.join(message.split())}"
    if message:
        with contextlib.suppress(OSError):
            print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
