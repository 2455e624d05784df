# SPDX-License-Identifier: Apache-2.0
"""Where a run's options come from: a preset, a YAML file, a run to resume, and flags; and the file of a run.

Of two values of one option the flag's counts, then the file's, then the preset's, then the resumed run's. All
but the flags make the default that the parser of the flags gets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import UserError, need, user_errors
from ..files import at_home, save_text
from .config import TrainConfig, check_names, preset_settings

PER_CALL = ("config", "outdir", "resume", "dry_run", "allow_changes")
"""Options of one call rather than of the run: the file of a run does not contain them."""
LENGTH = frozenset({"steps", "duration"})
_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
_TRUE = ("true", "yes", "on")
_KINDS: dict[type, str] = {int: "a whole number", float: "a number"}


def given_options(argv: Sequence[str]) -> set[str]:
    """The names of the options that have a flag in argv. UserError for --steps beside --duration."""
    flags = (word[2:].partition("=")[0].replace("_", "-") for word in argv if word.startswith("--"))
    given = {flag.removeprefix("no-").replace("-", "_") for flag in flags}
    if given >= LENGTH:
        raise UserError("expected --steps or --duration, got both")
    return given


def resume_and_outdir(argv: Sequence[str], options: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The values of --resume and --outdir: those of the flags, else of the options from a file."""
    given = given_options(argv)
    names = ("resume", "outdir")
    values = [flag_value(argv, f"--{name}") if name in given else options.get(name) for name in names]
    resume, outdir = (
        None if value is None else at_home(value, name) for name, value in zip(names, values, strict=True)
    )
    return resume, outdir


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """The value of a flag, read before the others because their defaults depend on it."""
    for i, word in enumerate(argv):
        value = None
        if word.replace("_", "-") == name and i + 1 < len(argv):
            value = argv[i + 1]
        elif word.startswith(name + "="):
            value = word.partition("=")[2]
        if value is not None:
            return None if value == "None" else value
    return None


def preset_and_file(argv: Sequence[str]) -> dict[str, Any]:
    """The options that --preset and --config of argv stand for, but for those that have a flag in argv.

    A preset named in the file is used where no flag names one.
    """
    given = given_options(argv)
    path = flag_value(argv, "--config")
    options = read_yaml(path, skip=given) if path is not None else {}
    name = flag_value(argv, "--preset") or options.get("preset")
    if name is not None:
        settings = {option: setting.value for option, setting in preset_settings(name).items()}
        options = {**settings, **options, "preset": name}
    if "duration" in options and "steps" in given:
        del options["duration"]  # the same thing, said in another way
    return options


def unchecked(options: Mapping[str, Any]) -> TrainConfig:
    """A default for the parser of the flags, which may lack --data. Its values are checked only after the
    flags have replaced some of them."""
    missing = need("tyro", "softdiff train").MISSING
    config = object.__new__(TrainConfig)
    for name, field in _FIELDS.items():
        default = missing if field.default is dataclasses.MISSING else field.default
        object.__setattr__(config, name, options.get(name, default))
    return config


def read_yaml(path: str, skip: set[str] | frozenset[str] = frozenset()) -> dict[str, Any]:
    """The options in a YAML file, without those named in `skip`. UserError for a file that is missing, is not
    a mapping, or contains options that are unknown (with the nearest name) or of the wrong type.

    Values are read from the text in the file, not from what YAML makes of it: `data: 00123` names a folder,
    not the number 83.
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
        raise UserError(f"{path}: expected options and their values, such as `batch: 64`, one per line")
    nodes: dict[str, Any] = {}
    for key, node in root.value:
        name = key.value.replace("-", "_")
        if name in nodes:
            raise UserError(f"{path}: option given twice: {name} (- and _ in a name are the same)")
        nodes[name] = node
    with user_errors(f"{path}: ", again=True):
        check_names(nodes)
    texts = {name: _text_of(f"{path}: {name}", name, node) for name, node in nodes.items()}
    if texts.keys() >= LENGTH and texts["duration"] is not None:
        raise UserError(f"{path}: expected steps or duration, got both")
    hints = get_type_hints(TrainConfig)
    return {
        name: _typed(f"{path}: {name}", hints[name], text) for name, text in texts.items() if name not in skip
    }


def _text_of(where: str, name: str, node: Any) -> bool | str | list[str] | None:
    """The value in a YAML node: the text in the file, a bool for a switch, None for null, or a list of
    texts."""
    kind, default = node.tag.rpartition(":")[2], _FIELDS[name].default
    if isinstance(default, bool):
        if kind != "bool":
            got = "None" if kind == "null" else repr(node.value) if node.id == "scalar" else f"a {kind}"
            raise UserError(f"{where}: expected true or false, got {got}")
        return node.value.lower() in _TRUE
    if kind == "bool":
        raise UserError(f"{where}: expected a value that is not a bool, got {node.value}; put text in quotes")
    if kind == "null":
        if default is not None:
            got = node.value or "nothing"
            raise UserError(f"{where}: expected a value, got {got}; remove the line, or put text in quotes")
        return None
    if isinstance(default, tuple) and node.id == "sequence" and all(i.id == "scalar" for i in node.value):
        return [item.value for item in node.value]
    if node.id != "scalar":
        wanted = "a list of values" if isinstance(default, tuple) else "a name or a number"
        raise UserError(f"{where}: expected {wanted}, got a {node.id}")
    return str(node.value)


def _typed(where: str, hint: Any, text: Any) -> Any:
    """A text as the type of its option, as its flag would read it."""
    if text is None or isinstance(text, bool):
        return text
    if NoneType in get_args(hint):
        return None if text == "None" else _typed(where, get_args(hint)[0], text)
    if get_origin(hint) is tuple:
        items = text if isinstance(text, list) else [text]
        return tuple(_typed(where, get_args(hint)[0], item) for item in items)
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise UserError(f"{where}: expected one of {', '.join(get_args(hint))}, got {text!r}")
        return text
    if hint not in _KINDS:
        return text
    try:
        return hint(text)
    except ValueError:
        raise UserError(f"{where}: expected {_KINDS[hint]}, got {text!r}") from None


def to_yaml(config: TrainConfig) -> str:
    """The options as YAML. A comment names the source of a value that the preset gave."""
    yaml = need("yaml", "writing config.yaml")
    settings = preset_settings(config.preset) if config.preset else {}
    lines = []
    for name, value in config.to_dict().items():
        if name in PER_CALL:
            continue
        # PyYAML ends a document that is a single scalar with a line of dots.
        text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
        line = f"{name}: {text}"
        setting = settings.get(name)
        if setting is not None and getattr(config, name) == setting.value:
            line += f"  # {setting.source}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def save_yaml(path: Path, config: TrainConfig) -> None:
    """Writes the options as a YAML file, completely or not at all."""
    save_text(path, to_yaml(config))
