# SPDX-License-Identifier: Apache-2.0
"""One of two processes of a training run, of which number 1 stops answering before its third step:
`python one_of_several.py DATA OUTDIR`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from training_runs import small

from softdiff_kernels.training.loop import train
from softdiff_kernels.training.trainer import Trainer


def main(data: str, outdir: str) -> None:
    real = Trainer.advance

    def faulty(trainer: Trainer) -> Any:
        if trainer.processes.rank == 1 and trainer.step == 2:
            time.sleep(600)
        return real(trainer)

    Trainer.advance = faulty  # type: ignore[method-assign]
    train(small(Path(data), Path(outdir), steps=50, save_every=1, timeout=8.0))


if __name__ == "__main__":
    main(*sys.argv[1:])
