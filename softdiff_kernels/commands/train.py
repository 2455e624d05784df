# SPDX-License-Identifier: Apache-2.0
"""`softdiff train`: from the flags to `training.loop.train`.

The options are those of `training.config.TrainConfig`. The trainer itself is imported only to train: it takes
a second, which `softdiff train --help` does not need.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..errors import need
from ..training.config import TrainConfig, check_effects
from ..training.config_file import given_options, preset_and_file, resume_and_outdir, unchecked


def prepare(argv: Sequence[str]) -> tuple[list[str], TrainConfig | None]:
    """The flags, and the options that they override: those of --preset, --config and --resume."""
    argv = ["--dry-run" if word == "-n" else word for word in argv]
    options = preset_and_file(argv)
    resume, outdir = resume_and_outdir(argv, options)
    if resume is not None:
        from ..training.loop import resumed_options

        resumed = resumed_options(resume, outdir)
        if resumed is not None:
            options = {**vars(resumed), **options}
    return argv, unchecked(options) if options else None


def run(config: TrainConfig, argv: Sequence[str]) -> int:
    """Trains, and prints how to continue. After a signal the exit code is 128 + its number."""
    check_effects(given_options(argv), config)
    from ..training.loop import dry_run, train

    if config.dry_run:
        print(dry_run(config))
        return 0
    for module in ("safetensors", "PIL", "diffusers", "yaml"):
        need(module, "softdiff train")
    if config.tensorboard:
        need("tensorboard", "--tensorboard", "log")
    if config.wandb:
        need("wandb", "--wandb", "wandb")
    result = train(config)
    code = 0 if result.stopped_by is None else 128 + result.stopped_by
    if not result.first:
        return code
    if result.stopped_by is not None:
        resume = f"softdiff train --resume {shlex.quote(str(result.folder))}"
        print(f"stopped at step {result.step}; resume with: {resume}")
    else:
        print(f"done; sample with: softdiff sample --weights {shlex.quote(str(result.weights))}")
    return code
