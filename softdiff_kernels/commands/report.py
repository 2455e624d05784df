# SPDX-License-Identifier: Apache-2.0
"""`softdiff report`: one HTML page about a run, to look at or to send."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ..data.choices import class_list, labels_of
from ..diffusion import Corruption, time_steps
from ..errors import UserError, need, user_errors
from ..evaluation.curves import Line, plot, read_stats, schedule, speed, thinned, training_seconds
from ..evaluation.page import (
    OURS,
    Html,
    Part,
    code,
    document,
    facts,
    figure,
    note,
    number,
    picture,
    table,
    tag,
)
from ..files import PathText, check_free, save_text
from ..images import at_most, png_bytes, tile
from ..training.checkpoint import RUN_KINDS, load_meta, newest_readable
from ..training.config import TrainConfig, flag
from ..training.config_file import PER_CALL, read_yaml, to_yaml
from ..training.distributed import pick_device
from ..training.metrics import QUARTILES, STATS
from ..training.presets import BEST
from ..training.trainer import SHOWN_TIMES
from ..training.weights import LoadedModel, load_model

MOST_GRIDS, MOST_CLASSES, COLUMNS, CELL = 8, 40, 9, 100
FEW, MANY = 5, 16
WIDE, NARROW = 1400, 400
"""Pixels across of the widest picture in the page, and of those that are shown small."""
QUARTERS = tuple(f"t from {i / QUARTILES:g} to {(i + 1) / QUARTILES:g}" for i in range(QUARTILES))
GROUPS = {
    **{"data": "Data", "steps": "Training", "network": "Network", "loss": "Loss", "corruption": "Corruption"},
    **{"sampler": "Grids", "log_every": "Files and machine"},
}
"""The groups of options, each by its first one in the order of TrainConfig."""
SOURCES = {
    "paper": "what the paper of the preset's method uses",
    "ncsn++": "the default of Song et al. 2021, on whose network the paper builds",
    "measured": "what an experiment of this library shows to be the best (docs/experiments.md)",
    "ours": "this library's choice, where neither is known",
    "default": "neither a preset nor the run's author chose it",
    "given": "chosen for this run by a flag or a file",
}
CITATIONS = {
    "soft": """@article{daras2022soft,
  title   = {Soft Diffusion: Score Matching for General Corruptions},
  author  = {Daras, Giannis and Delbracio, Mauricio and Talebi, Hossein and
             Dimakis, Alexandros G. and Milanfar, Peyman},
  journal = {arXiv preprint arXiv:2209.05442},
  year    = {2022}
}""",
    "blurring": """@article{hoogeboom2022blurring,
  title   = {Blurring Diffusion Models},
  author  = {Hoogeboom, Emiel and Salimans, Tim},
  journal = {arXiv preprint arXiv:2209.05557},
  year    = {2022}
}""",
    "ihdm": """@article{rissanen2022generative,
  title   = {Generative Modelling With Inverse Heat Dissipation},
  author  = {Rissanen, Severi and Heinonen, Markus and Solin, Arno},
  journal = {arXiv preprint arXiv:2206.13397},
  year    = {2022}
}""",
}


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about a run, finished or not, with all pictures inside it."""

    run: PathText = field(metadata={"help": "Run folder of `softdiff train`."})
    out: PathText | None = None
    """Page to write. Default: report.html in the run folder. An older report is replaced, any other file is
    not."""
    distances: PathText | None = None
    """Results of `softdiff evaluate --out` to show. Default: those in the .json files of the run folder."""
    steps: int | None = None
    """Sampler steps of the images that are drawn from the newest weights; 0 draws none. Default: the run's
    --sample-steps."""
    count: int | None = None
    """Number of these images. Default: 5, or 16 where the run itself has drawn no grid."""
    device: str = "auto"
    """Where they are drawn: auto (a GPU if there is one), cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        for name, least in {"steps": 0, "count": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name}: expected at least {least}, got {value}")


def run(config: ReportConfig, argv: Sequence[str]) -> int:
    """Writes the page."""
    for module in ("safetensors", "PIL", "yaml"):
        need(module, "softdiff report")
    report(config)
    return 0


def report(config: ReportConfig, say: Callable[[str], Any] = print) -> Path:
    """Writes the page and returns its path. UserError, before any work, for a folder that is no run's and for
    a file that may not be replaced."""
    folder = Path(config.run)
    out = Path(config.out) if config.out is not None else folder / "report.html"
    device = pick_device(config.device)
    of_run = Run.read(folder)
    check_free("--out", out, overwrite=_is_ours(out))
    results = list(_results(folder, config.distances))
    page = of_run.page(config, device, results, say)
    save_text(out, page)
    say(f"{out}: {len(page.encode()) / 2**20:.1f} MiB, one file that any browser opens")
    return out


def _is_ours(path: Path) -> bool:
    """Whether a file is a report, which a new one may replace."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return OURS.search(file.read(2000)) is not None
    except OSError:
        return False


@dataclass
class Run:
    """What a run folder holds. meta: of the newest checkpoint, empty if there is none; stats: the lines of
    stats.jsonl that can be read; model: of the newest weights; drawn: images of the seeds 0, 1, ... by it,
    uint8 [N, C, H, W]. `trajectory` loads and draws."""

    folder: Path
    config: TrainConfig
    sources: dict[str, str]
    meta: dict[str, Any]
    stats: list[dict[str, Any]]
    model: LoadedModel | None = None
    drawn: torch.Tensor | None = None

    @classmethod
    def read(cls, folder: Path) -> Run:
        """UserError where `folder` is not a run's."""
        expected = f"{folder}: expected a run folder of softdiff train"
        if not folder.is_dir():
            raise UserError(f"{expected}, got {'a file' if folder.exists() else 'no such folder'}")
        meta = _newest_meta(folder)
        yaml = folder / "config.yaml"
        if yaml.is_file():
            with user_errors(f"{yaml}: "):
                config = TrainConfig(**read_yaml(str(yaml)))
                options = yaml.read_text(encoding="utf-8")
        elif "config" in meta:
            with user_errors(f"{folder}: "):
                config = TrainConfig.from_dict(meta["config"])
                options = to_yaml(config)
        else:
            raise UserError(f"{expected}, got neither config.yaml nor checkpoints in it")
        return cls(folder, config, sources(config, options), meta, read_stats(folder / STATS))

    @property
    def step(self) -> int:
        """The last step that is known of."""
        logged = self.stats[-1]["step"] if self.stats else 0
        return max(logged, int(self.meta.get("step", 0)))

    def page(
        self,
        options: ReportConfig,
        device: torch.device,
        results: list[tuple[str, dict[str, Any]]],
        say: Callable[[str], Any],
    ) -> str:
        """The HTML."""
        drawn = self.trajectory(options, device, say)
        sections = {
            "Samples": self.samples(),
            "Loss": self.loss(),
            "Corruption": self.corruption(),
            "Trajectory": drawn,
            "Samplers": self.samplers(),
            "Distances": self.distances(results),
            "Options": self.options(),
            "Use it": self.use(options.run),
            "Cite": self.cite(),
        }
        top = [tag("p", self.summary(), class_="lead"), self.tiles()]
        return document(self.folder.resolve().name, "Training report", top, sections)

    def summary(self) -> str:
        """One sentence on what this run is."""
        config, data = self.config, self.meta.get("data", {})
        corruption = Path(config.corruption).name
        what = {
            "soft": "blur and a little noise",
            "noise": "noise alone",
            "mask": "fading pixels and a little noise",
        }
        name = data.get("name") or Path(config.data).name
        classes = ", given their class" if config.conditional else ""
        state = "finished" if self.step >= config.steps else "not finished"
        undone = what.get(corruption, f"the corruption {corruption}")
        where = f"{state}, at step {number(self.step)} of {number(config.steps)}"
        return f"A diffusion model of the images of {name}{classes}, which undoes {undone}: {where}."

    def tiles(self) -> Html:
        """The most important numbers."""
        config, data = self.config, self.meta.get("data", {})
        share = min(1.0, self.step / config.steps)
        bar = tag("span", tag("span", style=f"width:{100 * share:.1f}%"), class_="bar")
        steps = [f"{number(self.step)} of {number(config.steps)}", bar]
        shape = self.meta.get("shape")
        count = f"{number(data['count'])} images" if "count" in data else None
        size = f"{shape[1]} × {shape[2]}, {_channels(shape[0])}" if shape else None
        last = self.stats[-1] if self.stats else {}
        rate = f"{number(round(speed(self.stats)))} images/s" if self.stats else None
        classes = f"{len(self.meta['classes'])} classes" if self.meta.get("classes") else "unconditional"
        schedule_name = f"schedule {Path(config.schedule).name}" if config.corruption == "soft" else None
        parameters = None
        if self.model is not None:
            total = sum(p.numel() for p in self.model.denoiser.inner_model.parameters())
            parameters = f"{number(total) if total < 1e5 else f'{total / 1e6:.3g} M'} parameters"
        return facts(
            [
                ("Step", tag("span", steps)),
                ("Data", _two(data.get("name") or Path(config.data).name, count)),
                ("Images", _two(size, classes)),
                ("Corruption", _two(Path(config.corruption).name, schedule_name)),
                ("Network", _two(config.network, parameters)),
                ("Loss", _two(number(last["loss"]) if last else None, config.loss)),
                ("Seen", _two(number(last["images"]) if last else None, "images")),
                ("Speed", _two(rate, _duration(training_seconds(self.stats)))),
            ],
            class_="tiles",
        )

    def grids(self) -> list[tuple[int, Path]]:
        """The grids that the run has drawn, each with its step."""
        steps = ((p.stem.removeprefix("samples-"), p) for p in sorted(self.folder.glob("samples-*.png")))
        return [(int(step), path) for step, path in steps if step.isdigit()]

    def samples(self) -> list[Part]:
        """The newest grid beside the data, and grids over time."""
        grids = self.grids()
        some = [(*grid, image) for grid in spread(grids, MOST_GRIDS) if (image := _bytes(grid[1], NARROW))]
        parts: list[Part] = []
        pair = []
        if some:
            step, path, _ = some[-1]
            words = f"Grid of images sampled at step {number(step)}"
            pair.append(figure(picture(_bytes(path), words), f"Sampled at step {number(step)}"))
        elif self.drawn is not None and self.model is not None:
            words = (
                f"Grid of {len(self.drawn)} images sampled with the weights of step {number(self.model.step)}"
            )
            image = at_most(png_bytes(tile(self.drawn)), WIDE)
            pair.append(
                figure(picture(image, words), f"Sampled at step {number(self.model.step)}, for this report")
            )
        if real := _bytes(self.folder / "real.png"):
            words = "Grid of images of the training data"
            pair.append(figure(picture(real, words), "Images of the training data"))
        if pair:
            parts.append(tag("div", pair, class_="two"))
        if some or self.drawn is not None:
            pass
        elif self.config.sample_count == 0:
            parts.append(note("The run draws no grids of samples (--sample-count 0)."))
        else:
            every = number(self.config.sample_every)
            parts.append(note(f"No grid of samples yet: one is drawn every {every} steps."))
        if len(some) > 1:
            of_all = f" ({len(some)} of {len(grids)} grids)" if len(grids) > len(some) else ""
            shown = [
                figure(picture(image, f"Grid of samples at step {number(step)}"), f"Step {number(step)}")
                for step, _, image in some
            ]
            words = "A place in the grid is one seed: the same start, with the weights of that step."
            parts += [
                tag("h3", f"Over time{of_all}", class_="subhead"),
                tag("p", words, class_="soft"),
                tag("div", shown, class_="thumbs"),
            ]
        return parts

    def loss(self) -> list[Part]:
        """The loss over the steps, by quarters of t."""
        if not self.stats:
            return [note(f"No loss yet: a line is written every {number(self.config.log_every)} steps.")]
        lines = thinned(self.stats, QUARTILES)
        steps = [line["step"] for line in lines]
        curves = [Line(name, steps, [line["by_t"][i] for line in lines]) for i, name in enumerate(QUARTERS)]
        curves.append(Line("all t", steps, [line["loss"] for line in lines]))
        curves = [curve for curve in curves if curve.points()]
        if not curves:
            return [note(f"{STATS} holds no finite loss.")]
        rows = []
        for curve in curves:
            values = [value for _, value in curve.points()]
            rows.append([curve.label, number(values[0]), number(values[-1]), _percent(values)])
        words = (
            f"Mean of the {self.config.loss} loss over the images with t in each quarter: near 0 they are "
            "almost clean, near 1 almost nothing is left of them. Each quarter has its own scale."
        )
        if len(self.stats) > len(lines):
            words += f" A point is the mean of {round(len(self.stats) / len(lines))} lines of {STATS}."
        return [
            tag("p", words, class_="soft"),
            plot("Loss over the steps", curves, x="step", y="loss", log=True),
            table(["", "First", "Last", "Change"], rows, class_="loss"),
        ]

    def corruption(self) -> list[Part]:
        """Images corrupted at several t, and the quantities of the corruption over t."""
        parts: list[Part] = []
        if sheet := _bytes(self.folder / "corruption.png"):
            words = f"Training images as rows, corrupted at t = {', '.join(map(str, SHOWN_TIMES))} as columns"
            caption = "What the network learns to undo: images at each t."
            parts.append(_strip(picture(sheet, words), SHOWN_TIMES, caption))
        if "corruption" not in self.meta:
            return [*parts, note("The schedule is shown as soon as the run has written a checkpoint.")]
        try:
            corruption = Corruption.from_dict(self.meta["corruption"])
        except ValueError as error:
            return [*parts, note(f"The schedule cannot be shown: {error}.")]
        return [*parts, tag("h3", "Schedule", class_="subhead"), *schedule(corruption)]

    def trajectory(
        self, options: ReportConfig, device: torch.device, say: Callable[[str], Any]
    ) -> list[Part]:
        """How a few images form, drawn now from the newest weights that can be read."""
        loaded: list[LoadedModel] = []

        def read(path: Path, _: str) -> None:
            loaded.append(load_model(str(path), device))

        try:
            file = newest_readable(self.folder, "weights", say, read)
        except UserError as error:
            say(f"warning: no trajectory: {error}")
            return [note(f"Not drawn: {error}.")]
        if file is None:
            return [note(f"No weights yet: they are written every {number(self.config.save_every)} steps.")]
        self.model = model = loaded[-1]
        steps = model.config.sample_steps if options.steps is None else options.steps
        if steps == 0:
            return []
        sampler = model.denoiser.corruption.best_sampler(steps)
        count = options.count or (FEW if self.grids() else MANY)
        say(f"drawing {count} images by the {sampler} sampler in {steps} steps")
        ts, seeds = time_steps(steps), range(count)
        states: list[torch.Tensor] = []
        labels = labels_of(seeds, class_list(None, model.classes))
        model.generate(seeds, sampler=sampler, ts=ts, batch=count, labels=labels, states=states)
        self.drawn, rows = states[-1], min(FEW, count)
        places = torch.linspace(0, steps, min(COLUMNS, steps + 1)).round().long().tolist()
        times = [float(ts[i]) for i in places]
        sheet = torch.stack([states[i][:rows] for i in places], dim=1).flatten(0, 1)
        shown = ", ".join(f"{t:.2f}" for t in times)
        words = f"How {rows} images form, as rows: x_t at t = {shown} as columns"
        image = picture(at_most(png_bytes(tile(sheet, len(places))), WIDE), words)
        caption = (
            f"Seeds 0 to {rows - 1} by the {sampler} sampler in {steps} steps, with the "
            f"weights of step {number(model.step)}. Sampling starts from the {model.prior.describe()}."
        )
        return [_strip(image, times, caption)]

    def samplers(self) -> list[Part]:
        """The picture of `softdiff compare-samplers`, if the run has one."""
        image = _bytes(self.folder / "samplers.png")
        if not image:
            return []
        words = "Samplers as rows, numbers of steps as columns, each from the same starts"
        return [figure(picture(image, words), f"{words} (softdiff compare-samplers).")]

    def distances(self, results: list[tuple[str, dict[str, Any]]]) -> list[Part]:
        """What `softdiff evaluate` has measured."""
        if not results:
            command = f"softdiff evaluate --weights {shlex.quote(str(self.folder))} --reference DATA --out "
            command += shlex.quote(str(self.folder / "distances.json"))
            return [
                note("Not evaluated yet. A report after this command shows the distances:"),
                code(command),
            ]
        words = "Lower is nearer. Two compare only with the same features, reference and number of images."
        cards = [self._card(file, result) for file, result in results]
        return [tag("p", words, class_="soft"), tag("div", cards, class_="results")]

    def _card(self, file: str, result: dict[str, Any]) -> Html:
        def known(name: str, form: str = "{}") -> str | None:
            value = result.get(name)
            if value is None:
                return None
            return form.format(number(value) if isinstance(value, (int, float)) else value)

        def joined(*parts: str | None) -> str | None:
            return ", ".join(part for part in parts if part is not None) or None

        spread_ = known("std_over_subsets", " ± {}") or ""
        source = Path(known("reference_source") or "unknown").name
        details = [
            ("real images", known("floor")),
            ("samples", joined(known("samples"), known("seeds", "seeds {}"))),
            (
                "sampler",
                joined(known("sampler"), known("steps", "{} steps"), known("guidance", "guidance {}")),
            ),
            ("weights", known("step", "step {}") or "unknown"),
            ("reference", joined(known("reference", "{} images"), source)),
            ("features", known("features")),
            ("file", file),
        ]
        notes = [words for words in (self._other_weights(result), *result.get("notes", ())) if words]
        return tag(
            "article",
            tag("h3", str(result["metric"])),
            tag("p", number(result["value"]) + spread_, class_="big"),
            facts(details, class_="list"),
            [note(words) for words in notes],
        )

    def _other_weights(self, result: dict[str, Any]) -> str | None:
        """A sentence where a result is not known to be of this run."""
        weights, here = result.get("weights"), self.folder.resolve()
        if weights is None:
            return "It is not known which weights drew these images."
        path = Path(str(weights)).resolve()
        same = self.model is not None and result.get("weights_digest") == self.model.digest
        if same or path == here or path.parent == here:
            return None
        return f"It is not known that these images are of this run; they were drawn from {weights}."

    def options(self) -> list[Part]:
        """All options with their values and sources, in groups."""
        groups: dict[str, list[list[Part]]] = {}
        name = ""
        for option in fields(TrainConfig):
            name = GROUPS.get(option.name, name)
            if option.name in PER_CALL or option.name == "preset":
                continue
            source = self.sources[option.name]
            badge = tag("span", source, class_=f"badge {re.sub('[^a-z].*', '', source)}")
            value = tag("code", _value(getattr(self.config, option.name)))
            groups.setdefault(name, []).append([tag("code", flag(option.name)), value, badge])
        blocks = [
            tag("div", tag("h3", title), table(["Option", "Value", "Source"], rows))
            for title, rows in groups.items()
        ]
        preset = f"preset {self.config.preset}" if self.config.preset else "no preset"
        used = {source.partition(":")[0] for source in self.sources.values()}
        key = facts([(name, words) for name, words in SOURCES.items() if name in used], class_="key")
        return [tag("p", f"All options of the run: {preset}."), key, tag("div", blocks, class_="groups")]

    def use(self, given: str) -> list[Part]:
        """Commands to go on with."""
        where = shlex.quote(given)
        draw = [f"softdiff sample --weights {where} --seeds 0-63 --outdir samples"]
        parts: list[Part] = []
        if classes := self.meta.get("classes"):
            draw.append(f"{draw[0]}-of-one-class --classes number:0 --guidance 2")
            names = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:MOST_CLASSES]))
            more = f" and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
            parts.append(tag("p", f"Classes, by number and name: {names}{more}.", class_="soft"))
        compare = f"softdiff compare-samplers --weights {where}"
        labels = f", labels=[i % {len(classes)} for i in range(16)]" if classes else ""
        python = (
            "import torch\n"
            "from softdiff_kernels.training.weights import load_model\n\n"
            f'model = load_model({json.dumps(given, ensure_ascii=False)}, torch.device("cpu"))\n'
            f"images = model.generate(range(16){labels})  # uint8 [16, C, H, W]"
        )
        steps = 2 * self.config.steps if self.step >= self.config.steps else self.config.steps
        go_on = [
            f"softdiff train --resume {where} --steps {steps}",
            f"softdiff train --config {shlex.quote(str(Path(given) / 'config.yaml'))} --outdir again",
        ]
        return [
            tag("h3", "Draw images, and compare samplers"),
            code("\n".join([*draw, compare])),
            *parts,
            tag("h3", "In Python"),
            code(python),
            tag("h3", "Train on, or again"),
            code("\n".join(go_on)),
        ]

    def cite(self) -> list[Part]:
        """The papers of the method."""
        kind = self.config.corruption
        names = ["soft", *([kind] if kind in CITATIONS and kind != "soft" else [])]
        title = "Soft Diffusion: Score Matching for General Corruptions"
        link = tag("a", title, href="https://arxiv.org/abs/2209.05442")
        words = ["The method is that of ", link, ", or builds on it. This is an independent implementation."]
        return [tag("p", words), code("\n\n".join(CITATIONS[name] for name in names))]


def _newest_meta(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint that can be read says of the run, be it weights or a state."""
    found: list[dict[str, Any]] = [{}]

    def read(path: Path, kind: str) -> None:
        found.append(load_meta(path, kind))

    for kind in RUN_KINDS:
        # If all are damaged, there is what the other files tell.
        with suppress(UserError):
            newest_readable(folder, kind, lambda _: None, read)
    return max(found, key=lambda meta: int(meta.get("step", -1)))


def sources(config: TrainConfig, options: str) -> dict[str, str]:
    """Where each option's value comes from: one of SOURCES, "measured" with its experiment.

    options: the run's config.yaml, whose comments name the sources as they were when the run began.
    """
    found = dict(
        re.findall(r"^(\w+): .*  # (paper|ncsn\+\+|ours|measured: E\d+)$", options, flags=re.MULTILINE)
    )
    for option in fields(TrainConfig):
        name, value = option.name, getattr(config, option.name)
        if name in found:
            continue
        best = BEST.get(name)
        if value != option.default:
            found[name] = "given"
        elif config.preset is None and best is not None and best.value == value:
            found[name] = best.source
        else:
            found[name] = "default"
    return found


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _results(folder: Path, given: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of `softdiff evaluate --out`, with the name of their file. UserError for a file that was
    given and holds none."""
    files = sorted(folder.glob("*.json")) if given is None else [Path(given)]
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            if given is not None:
                raise UserError(f"--distances: {path}: not readable as JSON ({error})") from error
            continue
        entries = content if isinstance(content, list) else []
        entries = [entry for entry in entries if isinstance(entry, dict) and "metric" in entry]
        good = [entry for entry in entries if isinstance(entry.get("value"), float)]
        if given is not None and not good:
            raise UserError(f"--distances: {path}: expected results of softdiff evaluate --out, got none")
        yield from ((path.name, entry) for entry in good)


def _bytes(path: Path, most: int = WIDE) -> bytes:
    """A picture, made smaller if it is wider than `most`; empty where there is none, or a damaged one."""
    try:
        return at_most(path.read_bytes(), most)
    except (OSError, UserError):
        return b""


def _strip(image: Html, times: Sequence[float], caption: str) -> Html:
    """A picture of columns under their times."""
    width = min(900, CELL * len(times))
    names = [tag("span", f"{t:.2f}".removesuffix("0")) for t in times]
    heads = tag("div", names, class_="times", aria_hidden="true")
    return tag(
        "figure", heads, image, tag("figcaption", caption), class_="strip", style=f"max-width:{width}px"
    )


def _two(main: str | None, small: str | None) -> Html | None:
    """A tile's text over its small print; None without a text."""
    return None if main is None else tag("span", main, tag("small", small) if small else None)


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "–"
    return str(value)


def _channels(count: int) -> str:
    return {1: "grey", 3: "RGB", 4: "RGBA"}.get(count, f"{count} channels")


def _percent(values: Sequence[float]) -> str:
    if values[0] == 0:
        return "–"
    change = 100 * (values[-1] / values[0] - 1)
    return f"{change:+.0f} %".replace("-", "−")


def _duration(seconds: float) -> str | None:
    """About how long the steps took."""
    if seconds < 1:
        return None
    if seconds < 90:
        return f"{seconds:.0f} s of steps"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min of steps"
    return f"{seconds / 3600:.1f} h of steps"
