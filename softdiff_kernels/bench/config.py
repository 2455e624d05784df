# SPDX-License-Identifier: Apache-2.0
"""The options of `softdiff bench` and `softdiff bench compare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError
from ..files import PathText

Op = Literal[
    "corrupt",
    "blurring_corrupt",
    "momentum_step",
    "reverse_step",
    "soft_score_loss",
    "spectral_loss",
    "blur",
    "dct2",
    "idct2",
    "spectral_mix",
    "normal",
]
Section = Literal["ops", "sweeps", "memory"]
DType = Literal["float32", "bfloat16", "float16"]
BackendName = Literal["auto", "reference", "native", "triton", "cuda"]
OPS: tuple[Op, ...] = Op.__args__  # type: ignore[attr-defined]
SECTIONS: tuple[Section, ...] = Section.__args__  # type: ignore[attr-defined]
SIZES = (32, 64, 128, 256, 512)
QUICK_SIZES = (32, 64)


@dataclass(frozen=True)
class BenchConfig:
    """Time every op beside what people write or install, and beside the limits of this machine.

    A full run takes about 10 minutes on a CPU, --quick under one. Close other programs: on a loaded machine
    the ratios are unreliable. `softdiff bench compare A.json B.json` shows what changed between two runs.
    """

    out: PathText | None = None
    """Folder for bench.json, bench.md and the plots. Default: benchmark-results/DATE-DEVICE."""
    quick: bool = False
    """Few sizes, small batches, little time for each, no torch.compile: to see that it works. The times are
    rough."""
    ops: tuple[Op, ...] = ()
    """Ops to time. Default: all. If ops, sizes, a batch, dtypes or backends are given, only the section ops
    is run, unless --sections says otherwise."""
    sizes: tuple[int, ...] = ()
    """Pixels along a side. Default: 32 64 128 256 512."""
    batch: int | None = None
    """Images in a call. Default: as many as make 3/4 million values on a CPU, 64 MiB on a GPU."""
    dtypes: tuple[DType, ...] = ()
    """Dtypes of the images. Default: float32, on a GPU also bfloat16."""
    backends: tuple[BackendName, ...] = ()
    """Backends of ours to time. Default: auto, what a user gets; on a GPU each fused one that works."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    threads: tuple[int, ...] = ()
    """Thread counts on a CPU. Default: 1 and all cores."""
    compile: Literal["none", "some", "all"] = "some"
    """Baselines under torch.compile. "some": those of the three ops of training and sampling at 64 px, on a
    CPU also at 256 px, at the largest thread count. Each takes seconds to compile."""
    sections: tuple[Section, ...] = ()
    """Parts of the run: ops; sweeps over blur_std, batch size and host time; memory. Default: all. Whole
    steps and workloads: `python -m benchmarks.steps`, `python -m benchmarks.workloads`, from the sources."""
    default_allocator: bool = False
    """Leave the C library's allocator as it is. By default it is told to keep freed memory, as a process that
    has run for long mostly does; otherwise new results cost page faults, or not, by chance."""
    isa: Literal["avx512", "avx2", "portable"] | None = None
    """Instruction set of our CPU kernels; PyTorch keeps its own."""
    plots: bool = True
    """Draw the plots, if matplotlib is installed."""
    progress: bool = True
    """Draw a progress bar on a terminal; lines otherwise."""

    def __post_init__(self) -> None:
        """Refuses numbers below 1."""
        for name in ("sizes", "threads"):
            if any(value < 1 for value in getattr(self, name)):
                raise UserError(f"--{name}: expected numbers of at least 1, got {getattr(self, name)}")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"--batch: expected at least 1, got {self.batch}")

    def chosen_ops(self) -> tuple[Op, ...]:
        """The ops to time."""
        return self.ops or OPS

    def chosen_sizes(self) -> tuple[int, ...]:
        """The sizes to time."""
        return self.sizes or (QUICK_SIZES if self.quick else SIZES)

    def chosen_sections(self) -> tuple[Section, ...]:
        """The parts of the run."""
        if self.sections:
            return self.sections
        if self.ops or self.sizes or self.batch or self.dtypes or self.backends:
            return ("ops",)
        return tuple(s for s in SECTIONS if not (self.quick and s == "memory"))


@dataclass(frozen=True)
class CompareConfig:
    """Show what changed between two results of `softdiff bench`, and whether it is beyond the noise."""

    before: PathText
    """bench.json of the first run, or its folder."""
    after: PathText
    """bench.json of the second run, or its folder."""
    all: bool = False
    """Also list the rows that did not change."""
