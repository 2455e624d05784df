# SPDX-License-Identifier: Apache-2.0
"""Options as YAML: a run's own file, and what `--preset` and `--config` begin with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, need, user_errors
from ..files import at_home
from .config import TrainConfig, check_known, schedule_file
from .presets import preset

ONCE = ("config", "outdir", "resume", "dry_run", "allow_changes")
"""Options of a call rather than of a run: a run's file leaves them out, so that it makes a new run."""


def read_yaml(path: str) -> dict[str, Any]:
    """The options in a YAML file, by name: the text that stands there, True or False for switches, None for
    null, lists of texts. One sentence for a file that is missing, is no mapping, or has options that are
    unknown (with the nearest name) or of a kind that no flag can stand for.

    Texts, not what YAML makes of them: `data: 00123` names a folder, not the number 83.
    """
    yaml = need("yaml", "--config")
    file = Path(at_home(path, "config"))
    if not file.is_file():
        raise UserError(f"--config: {path}: no such file")
    try:
        with user_errors(f"{path}: "):
            root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not a readable YAML file ({' '.join(str(error).split())})") from error
    if root is None or root.tag == "tag:yaml.org,2002:null":
        return {}
    if root.id != "mapping" or any(key.id != "scalar" for key, _ in root.value):
        raise UserError(f"{path}: expected options and their values, such as `batch: 64`, one a line")
    named: dict[str, Any] = {}
    for key, node in root.value:
        name = key.value.replace("-", "_")
        if name in named:
            raise UserError(f"{path}: an option is there twice: {name} (- and _ in a name are the same)")
        named[name] = node
    try:
        check_known(named)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for name, node in named.items():
        named[name] = _value(f"{path}: {name}", name, node)
    if {"steps", "duration"} <= set(named) and named["duration"] is not None:
        raise UserError(f"{path}: expected steps or duration, got both")
    return named


_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
_TRUE = ("true", "yes", "on")


def _value(where: str, name: str, node: Any) -> bool | str | list[str] | None:
    """An option's value from its YAML node."""
    kind, default = node.tag.rpartition(":")[2], _FIELDS[name].default
    if isinstance(default, bool):
        if kind != "bool":
            got = "None" if kind == "null" else repr(node.value) if node.id == "scalar" else f"a {kind}"
            raise UserError(f"{where}: expected true or false, got {got}")
        return node.value.lower() in _TRUE
    if kind == "bool":
        raise UserError(f"{where}: expected no true or false, got {node.value}; a text goes in quotes")
    if kind == "null":
        if default is not None:
            got = node.value or "nothing"
            raise UserError(f"{where}: expected a value, got {got}; leave the line out, or quote a text")
        return None
    if isinstance(default, tuple) and node.id == "sequence" and all(i.id == "scalar" for i in node.value):
        return [item.value for item in node.value]
    if node.id != "scalar":
        wanted = "a list of values" if isinstance(default, tuple) else "a name or a number"
        raise UserError(f"{where}: expected {wanted}, got a {node.id}")
    return str(node.value)


LENGTH = frozenset({"steps", "duration"})


def as_flags(options: dict[str, Any]) -> list[str]:
    """The same options as flags, so that the parser of flags checks their types."""
    flags: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, (list, tuple)):
            flags += [flag, *map(str, value)]
        elif value is None:
            flags += [flag, "None"]
        else:
            flags.append(f"{flag}={value}")
    return flags


def preset_flags(name: str) -> list[str]:
    """A preset as flags."""
    return [*as_flags({key: setting.value for key, setting in preset(name).items()}), f"--preset={name}"]


def beginning(preset_name: str | None, config: str | None) -> list[str]:
    """The flags that `--preset` and `--config` stand for, to be put before those that were given.

    The file overrides the preset; a preset named in the file counts where the flags name none.
    """
    options = read_yaml(config) if config is not None else {}
    named = options.pop("preset", None)
    if named is not None and not isinstance(named, str):
        raise UserError(f"{config}: preset: expected a name, got {named!r}")
    preset_name = preset_name or named
    return [*(preset_flags(preset_name) if preset_name else []), *as_flags(options)]


def to_yaml(config: TrainConfig) -> str:
    """The options as YAML; those that come from the preset unchanged say whose they are."""
    yaml = need("yaml", "writing config.yaml")
    settings = preset(config.preset) if config.preset else {}
    lines = []
    for name, value in config.to_dict().items():
        if name in ONCE:
            continue
        # A document of one number ends with a line of dots.
        text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
        line = f"{name}: {text}"
        setting = settings.get(name)
        if setting is not None and getattr(config, name) == setting.value:
            line += f"  # {setting.source}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def describe(config: TrainConfig, processes: int) -> str:
    """How the global batch comes about."""
    each, rounds = share(config, processes)
    return f"global batch {config.batch} = {processes} x {each} x {rounds} (processes, images, accumulation)"


def share(config: TrainConfig, processes: int) -> tuple[int, int]:
    """Images at a time in each process, and how many times a step. UserError where the batch does not
    divide so."""
    each = config.batch_gpu or max(1, config.batch // processes)
    rounds, rest = divmod(config.batch, each * processes)
    if rest or rounds < 1:
        raise UserError(
            f"--batch {config.batch}: expected a multiple of {processes * each}, the images that {processes} "
            f"processes take at {each} each; choose another --batch or --batch-gpu"
        )
    return each, rounds


def merged(argv: Sequence[str], begin: Sequence[str]) -> list[str]:
    """The beginning's flags, less those that are given anew, then the given ones.

    Given flags win because the beginning's of the same name are left out: a flag of several values, given
    twice, would be refused.
    """
    given = {_name(word) for word in argv if word.startswith("--")}
    if given >= LENGTH:
        raise UserError("expected --steps or --duration, got both")
    if given & LENGTH:
        given |= LENGTH  # one thing said in two ways
    kept: list[str] = []
    drop = False
    for word in begin:
        if word.startswith("--"):
            drop = _name(word) in given
        if not drop:
            kept.append(word)
    return [*kept, *argv]


def _of_a_file(config: TrainConfig) -> bool:
    return schedule_file(config.schedule)


# Flag, what makes it count, and how that is said.
_DEPENDS: tuple[tuple[str, Callable[[TrainConfig], bool], str], ...] = (
    ("class-dropout", lambda c: c.conditional, "--conditional"),
    ("nodes", lambda c: c.schedule == "wasserstein", "--schedule wasserstein"),
    ("blur-std-max", lambda c: c.schedule != "noise" and not _of_a_file(c), "a --schedule that makes a blur"),
    ("noise-std-min", lambda c: not _of_a_file(c), "a --schedule that is no file"),
    ("noise-std-max", lambda c: not _of_a_file(c), "a --schedule that is no file"),
)


def check_flags_count(argv: Sequence[str], config: TrainConfig) -> None:
    """Refuses flags that would change nothing beside the others: who gave them expects that they do."""
    given = {_name(word) for word in argv if word.startswith("--")}
    idle = [
        f"--{flag} has an effect only with {wanted}"
        for flag, counts, wanted in _DEPENDS
        if flag in given and not counts(config)
    ]
    if idle:
        raise UserError("; ".join(idle))


def _name(word: str) -> str:
    name = word[2:].partition("=")[0].replace("_", "-")
    return name.removeprefix("no-")
