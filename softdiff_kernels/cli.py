# SPDX-License-Identifier: Apache-2.0
"""The command line: `softdiff train | sample | evaluate | dataset | schedule | bench | doctor | demo`.

Commands are chosen here by hand, so that `doctor` and `--help` need the standard library and torch
alone; a command's own flags are read by tyro from the dataclasses of `training.config` and its like.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from . import __version__, _interrupt
from .errors import UserError, need, reason

COMMANDS = {
    "train": "train a model on a folder of images, a .zip or .npz file, or the built-in digits",
    "sample": "draw images from a weights file",
    "evaluate": "measure how far images are from a reference data set",
    "dataset": "report what is in a data set, and convert it to a .zip or .npz file",
    "schedule": "compute the Wasserstein schedule of a data set",
    "bench": "time every op beside what people write or install; `bench compare A B` shows what changed",
    "demo": "train on digits for a few minutes and draw momentum beside naive samples",
    "doctor": "tell what works on this machine, and why the rest does not",
}
Options = TypeVar("Options")


def usage() -> str:
    """What `softdiff --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    lines += ["", "softdiff COMMAND --help lists its options; softdiff --version tells the versions"]
    return "\n".join(["usage: softdiff COMMAND [OPTIONS]", "", *lines])


def parse(
    options: type[Options],
    command: str,
    argv: Sequence[str],
    default: Options | None = None,
    *,
    positional: bool = False,
) -> Options:
    """Reads flags into a dataclass, ~ in paths as the home folder; a wrong flag is a UserError of one
    sentence.

    positional: what has no default stands without a flag.
    """
    tyro = need("tyro", f"softdiff {command}")
    from .files import expanded

    described = io.StringIO()
    try:
        with contextlib.redirect_stderr(described):
            extra: dict[str, Any] = {} if default is None else {"default": default}
            if positional:
                extra["config"] = (tyro.conf.PositionalRequiredArgs,)
            found: Options = tyro.cli(options, prog=f"softdiff {command}", args=list(argv), **extra)
            return expanded(found)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_sentence(described.getvalue(), command)) from None


_KINDS = (
    (r"(?:invalid literal for int|no type matching \S*\bINT\b)", "a whole number"),
    (r"(?:could not convert string to float|no type matching \S*\bFLOAT\b)", "a number"),
    (r"Could not find valid parse", "numbers with spaces between"),
)
"""How tyro's messages on a value of another kind begin, and what the option takes."""


def _sentence(framed: str, command: str) -> str:
    """tyro's message on one line, without its frame (of lines, or of dashes where the terminal's
    encoding has no lines), its title and its pointer to the help."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", framed)
    lines = [line.strip("│╭╮╰╯ ").strip("─").strip() for line in plain.splitlines()]
    lines = [line for line in lines if line.strip("-")][1:]
    pointer = next((i for i, line in enumerate(lines) if line.startswith("For full helptext")), len(lines))
    text = " ".join(" ".join(lines[:pointer]).split())
    text = re.sub(r"^Error parsing \w+: ", "", text)  # what the dataclass itself says
    for said, wanted in _KINDS:
        if found := re.match(rf"Error parsing (--[\w-]+): {said}.*?(?:\[(.*?)\]|('.*?'))", text):
            text = f"{found[1]}: expected {wanted}, got {found[2] or found[3]}"
    text = text.partition(" Argument helptext:")[0]
    return f"{text or 'the options cannot be read'} (softdiff {command} --help lists them)"


def _flag(argv: Sequence[str], name: str) -> str | None:
    """The value of a flag, read before the others because the others' defaults depend on it."""
    for i, word in enumerate(argv):
        value = None
        if word.replace("_", "-") == name and i + 1 < len(argv):
            value = argv[i + 1]
        elif word.startswith(name + "="):
            value = word.partition("=")[2]
        if value is not None:
            return None if value == "None" else value
    return None


def _train(argv: Sequence[str]) -> int:
    from .training.config import TrainConfig
    from .training.distributed import rank, world_size

    first = rank() == 0
    default, given = None, argv
    helped = "--help" in argv or "-h" in argv
    if not helped:
        from .training.options import beginning, check_flags_count, merged

        argv = ["--dry-run" if word == "-n" else word for word in argv]
        argv = merged(argv, beginning(_flag(argv, "--preset"), _flag(argv, "--config")))
    if not helped and (resume := _flag(argv, "--resume")) is not None:
        need("safetensors", "softdiff train")
        from .files import at_home
        from .training.loop import with_resume_defaults

        outdir = _flag(argv, "--outdir")
        outdir = None if outdir is None else at_home(outdir, "outdir")
        default = with_resume_defaults(at_home(resume, "resume"), outdir)
    config = parse(TrainConfig, "train", argv, default)
    if default is not None and config.duration is not None and config.batch != default.batch:
        raise UserError("--duration: a run that goes on with another --batch takes --steps")
    config = config.resolved()
    check_flags_count(given, config)
    if config.dry_run:
        from .training.loop import check_dry_run
        from .training.options import describe, to_yaml

        check_dry_run(config)
        print(f"{to_yaml(config)}# {describe(config, world_size())}")
        return 0
    for module in ("safetensors", "PIL", "diffusers", "yaml"):
        need(module, "softdiff train")
    if config.tensorboard:
        need("tensorboard", "--tensorboard", "log")
    if config.wandb:
        need("wandb", "--wandb", "wandb")
    from .training.loop import train

    result = train(config)
    if not first:
        return 0 if result.stopped_by is None else 128 + result.stopped_by
    if result.stopped_by is not None:
        again = f"softdiff train --resume {shlex.quote(str(result.folder))}"
        print(f"stopped at step {result.step}; go on by: {again}")
        return 128 + result.stopped_by
    print(f"done; draw images by: softdiff sample --weights {shlex.quote(str(result.weights))}")
    return 0


def _sample(argv: Sequence[str]) -> int:
    from .commands.configs import SampleConfig

    config = parse(SampleConfig, "sample", argv)
    for module in ("safetensors", "PIL", "diffusers"):
        need(module, "softdiff sample")
    from .commands.sample import sample

    sample(config)
    return 0


def _dataset(argv: Sequence[str]) -> int:
    from .commands.dataset import DatasetConfig, convert

    config = parse(DatasetConfig, "dataset", argv, positional=True)
    need("PIL", "softdiff dataset")
    convert(config)
    return 0


def _evaluate(argv: Sequence[str]) -> int:
    from .commands.evaluate_config import EvaluateConfig

    config = parse(EvaluateConfig, "evaluate", argv)
    for module in ("safetensors", "PIL", *(("diffusers",) if config.weights is not None else ())):
        need(module, "softdiff evaluate")
    from .commands.evaluate import evaluate

    evaluate(config)
    return 0


def _schedule(argv: Sequence[str]) -> int:
    from .commands.configs import ScheduleConfig

    config = parse(ScheduleConfig, "schedule", argv)
    from .commands.schedule import make_schedule

    make_schedule(config)
    return 0


def _bench(argv: Sequence[str]) -> int:
    if argv and argv[0] == "compare":
        from .bench.config import CompareConfig

        comparison = parse(CompareConfig, "bench compare", argv[1:], positional=True)
        from .bench.compare import compare

        print(compare(comparison))
        return 0
    from .bench.config import BenchConfig

    config = parse(BenchConfig, "bench", argv)
    from .bench.run import bench

    bench(config, argv)
    return 0


def _demo(argv: Sequence[str]) -> int:
    from .commands.configs import DemoConfig

    config = parse(DemoConfig, "demo", argv)
    for module in ("safetensors", "PIL", "diffusers", "sklearn"):
        need(module, "softdiff demo")
    from .commands.demo import demo

    demo(config)
    return 0


def _doctor(argv: Sequence[str]) -> int:
    if argv and set(argv) & {"-h", "--help"}:
        print("usage: softdiff doctor\n\n" + COMMANDS["doctor"])
        return 0
    if argv:
        raise UserError(f"doctor takes no options, got {' '.join(argv)}")
    from .commands.doctor import report

    print(report())
    return 0


RUN: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "sample": _sample,
    "evaluate": _evaluate,
    "dataset": _dataset,
    "schedule": _schedule,
    "bench": _bench,
    "demo": _demo,
    "doctor": _doctor,
}


def version() -> str:
    """What `softdiff --version` prints."""
    import torch

    return f"softdiff_kernels {__version__}, torch {torch.__version__}"


def _check_variables() -> None:
    """Refuses variables of the ops that say nothing they know, before any work."""
    from .backends import chosen
    from .caches import limit

    try:
        limit()
        chosen()
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error


def _command(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version", "version"):
        print(version())
        return 0
    if words[0] not in RUN:
        raise UserError(f"expected a command ({', '.join(RUN)}), got {words[0]!r}")
    if words[0] != "doctor" and not {"-h", "--help"} & set(words):
        _check_variables()
    return RUN[words[0]](words[1:])


def _lost_output() -> OSError | None:
    """Writes out standard output; the error, if that fails. What it holds is then thrown away, or Python
    would try again on its way out and complain in its own words."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _told(error: Exception) -> str:
    """The sentence for an error of the machine; any other is raised again, with its traceback."""
    from .memory import is_out_of_memory, out_of_memory

    if is_out_of_memory(error):
        return out_of_memory(error)
    if isinstance(error, OSError):
        return reason(error)
    raise error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit code: 2, with one line on stderr, where the user can put right what
    went wrong; 130 after Ctrl-C; 1, without a word, where the reader of a pipe has left."""
    _interrupt.over()
    with contextlib.suppress(AttributeError, ValueError):  # names that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code, said = 2, ""
    lost: OSError | None = None
    try:
        code = _command(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as stop:  # of the parser, once it has printed its help
        if stop.code not in (0, None):
            raise
        code = 0
    except UserError as error:
        said = str(error)
    except KeyboardInterrupt:
        code, said = 130, _interrupt.STOPPED
    except OSError as error:
        # Without a name: of standard output, where it has no buffer that would fail again.
        written = error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)
        lost, said = error if written else None, _told(error)
    except Exception as error:
        said = _told(error)
    lost = _lost_output() or lost
    if isinstance(lost, BrokenPipeError):
        return 1
    if lost is not None:
        code, said = 2, f"cannot write to standard output: {reason(lost)}"
    if said and code == 2:
        rank = os.environ.get("RANK")
        who = f"softdiff (process {rank})" if rank else "softdiff"
        said = f"{who}: error: {' '.join(said.split())}"
    if said:
        with contextlib.suppress(OSError):
            print(said, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
