# SPDX-License-Identifier: Apache-2.0
"""The commands of `softdiff`, one module each: a dataclass of options, and `run(options, argv) -> exit code`.

A module is imported only when its command runs, so that `softdiff doctor`, `--help` and `--version` need the
standard library and torch only.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple


class Command(NamedTuple):
    """A command. options: the dataclass of its options, by its name in the module; None for no options.

    run: the function of the module that does the work. prepare: the function that reads the flags on which
    the defaults of the others depend, `prepare(argv) -> (argv, default options)`. positional: an option
    without a default is given without a flag.
    """

    help: str
    module: str
    options: str | None = None
    run: str = "run"
    prepare: str | None = None
    positional: bool = False

    def load(self) -> ModuleType:
        """Imports the module of the command."""
        return import_module(f"{__name__}.{self.module}")


COMMANDS = {
    "train": Command(
        "train a model on your own images, or on the built-in digits",
        *("train", "TrainConfig"),
        prepare="prepare",
    ),
    "sample": Command("generate images from a weights file", "sample", "SampleConfig"),
    "restore": Command("deblur, denoise or fill in images with a trained model", "restore", "RestoreConfig"),
    "evaluate": Command(
        "measure the distance of images from a reference data set", "evaluate", "EvaluateConfig"
    ),
    "report": Command("write one HTML page about a run", *("report", "ReportConfig"), positional=True),
    "compare-samplers": Command(
        "show samplers by numbers of steps in one picture", "compare_samplers", "CompareSamplersConfig"
    ),
    "dataset": Command(
        "report what a data set contains, and convert it to a .zip or .npz file",
        *("dataset", "DatasetConfig"),
        positional=True,
    ),
    "export": Command("write a model as a folder for diffusers", "export", "ExportConfig", positional=True),
    "schedule": Command("compute the Wasserstein schedule of a data set", "schedule", "ScheduleConfig"),
    "bench": Command("time every op against alternatives on this machine", "bench", "BenchConfig"),
    "bench compare": Command(
        "show what changed between two results of bench",
        *("bench", "CompareConfig", "run_compare"),
        positional=True,
    ),
    "demo": Command("train on digits for two minutes and show samples of two samplers", "demo", "DemoConfig"),
    "doctor": Command("report what works on this machine, and why the rest does not", "doctor"),
}
