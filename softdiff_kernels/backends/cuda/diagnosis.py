# SPDX-License-Identifier: Apache-2.0
"""Whether the compiled CUDA kernels work here, and a sentence for each reason why not.

`gather` asks the machine for the facts, and `diagnose` judges them, so that every case is tested on a machine
without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from .. import installed
from ..installed import Record

# The oldest driver of a CUDA major version, which runs the machine code of all its minor ones.
OLDEST_DRIVER = {12: "525", 13: "580"}
Capability = tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """What the build, the module, torch and the driver report.

    import_error: why the module did not import, empty where it did; architectures, ptx, runtime, driver: as
    the module says, versions as CUDA writes them (13.0 is 13000), 0 without a driver; devices: compute
    capabilities, as (9, 0).
    """

    record: Record
    import_error: str = ""
    torch_version: str = ""
    torch_cuda: str | None = None
    torch_hip: str | None = None
    torch_sees_gpu: bool = False
    devices: tuple[Capability, ...] = ()
    architectures: tuple[int, ...] = ()
    ptx: int | None = None
    runtime: int = 0
    driver: int = 0
    emulated: bool = False


def version(number: int) -> str:
    """13010 as 13.1."""
    return f"{number // 1000}.{number % 1000 // 10}"


def listed(architectures: Sequence[int]) -> str:
    return ", ".join(f"sm_{arch}" for arch in architectures)


def absent(record: Record, import_error: str) -> str:
    """Why there is no module: the build's reason, or else the error of the import."""
    if record.cuda:
        return f"the CUDA kernels were built, but do not import: {import_error}"
    reason = record.cuda_reason or f"{import_error}, and the build gave no reason"
    return f"installed without the CUDA kernels: {reason}; see docs/building.md"


def driver_problem(driver: int, runtime: int) -> str:
    """Why a driver cannot run the kernels' machine code; empty if it can."""
    if driver == 0:
        return "no NVIDIA driver is loaded"
    major = runtime // 1000
    if driver // 1000 >= major:
        return ""
    wanted = OLDEST_DRIVER.get(major)
    needed = f"driver {wanted} or later" if wanted else f"a driver for CUDA {major}"
    return (
        f"the NVIDIA driver knows CUDA up to {version(driver)}, "
        f"but the CUDA kernels are of {version(runtime)}: {needed} is needed"
    )


def runs_machine_code(capability: Capability, architectures: Sequence[int]) -> bool:
    """Machine code runs on GPUs of its own major version and at least its minor one."""
    major, minor = capability
    return any(arch // 10 == major and arch % 10 <= minor for arch in architectures)


def device_problem(capability: Capability, facts: Facts) -> str:
    """Why one GPU cannot run the kernels; empty if it can."""
    if runs_machine_code(capability, facts.architectures):
        return ""
    number = 10 * capability[0] + capability[1]
    has = f"the GPU is sm_{number}, and the CUDA kernels are compiled for {listed(facts.architectures)}"
    if number < min(facts.architectures):
        return f"{has}: it is too old for them"
    if facts.ptx is None or number < facts.ptx:
        return f"{has}, which a GPU of that generation does not run"
    if facts.driver < facts.runtime:
        return (
            f"{has}; a driver for CUDA {version(facts.runtime)} or later could compile them for it, "
            f"but the one here knows CUDA up to {version(facts.driver)}"
        )
    return ""


def without_gpu(facts: Facts) -> str:
    """Why torch sees no NVIDIA GPU; empty if it sees one."""
    driver = f"an NVIDIA driver for CUDA {version(facts.driver)} is here" if facts.driver else ""
    if facts.torch_hip is not None:
        return "torch is built for ROCm, and these kernels for NVIDIA's GPUs: Triton's run on both"
    if facts.torch_cuda is None:
        tail = f", though {driver}: install a CUDA build of torch" if driver else ""
        return f"torch {facts.torch_version} is built for the CPU alone{tail}"
    if not facts.torch_sees_gpu:
        tail = f", though {driver} and torch is built for CUDA {facts.torch_cuda}" if driver else ""
        return f"torch finds no GPU{tail or '; no NVIDIA driver is loaded'}"
    return ""


def diagnose(facts: Facts) -> tuple[bool, str]:
    """Whether at least one GPU of this machine can run the kernels, and the reason in words."""
    if facts.import_error:
        return False, absent(facts.record, facts.import_error)
    if facts.emulated:
        return True, "CUDA kernels, emulated on the CPU for tests"
    problem = without_gpu(facts) or driver_problem(facts.driver, facts.runtime)
    if problem:
        return False, problem
    problems = [device_problem(capability, facts) for capability in facts.devices]
    if not problems:
        return False, "the NVIDIA driver finds no GPU"
    if all(problems):
        return False, problems[0]
    parts = [f"fused CUDA kernels ({listed(facts.architectures)}; CUDA {version(facts.runtime)})"]
    newer = [
        10 * major + minor
        for (major, minor), trouble in zip(facts.devices, problems, strict=True)
        if not trouble and not runs_machine_code((major, minor), facts.architectures)
    ]
    if newer:
        parts.append(f"compiled by the driver for {listed(sorted(set(newer)))} at first use")
    if any(problems):
        parts.append(f"not on every GPU here: {next(filter(None, problems))}")
    return True, ", ".join(parts)


def load() -> tuple[Any, str]:
    """(the compiled module, "") or (None, why it does not import). Loading it calls nothing of CUDA's."""
    try:
        return import_module("softdiff_kernels._cuda"), ""
    except (ImportError, OSError) as error:
        return None, str(error) or type(error).__name__


def gather() -> Facts:
    """The facts here. Asks the driver for its GPUs only where torch sees one, and makes no context."""
    module, error = load()
    facts: dict[str, Any] = {
        "record": installed.read(),
        "import_error": error,
        "torch_version": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "torch_hip": torch.version.hip,
    }
    if module is None:
        return Facts(**facts)
    sees = torch.version.cuda is not None and torch.cuda.is_available()
    driver, runtime = module.driver_version(), module.runtime_version()
    # A driver that is too old for the module's runtime cannot be asked for its GPUs.
    asks = sees and not driver_problem(driver, runtime)
    return Facts(
        **facts,
        torch_sees_gpu=sees,
        devices=tuple(tuple(pair) for pair in module.devices()) if asks else (),
        architectures=tuple(module.architectures()),
        ptx=module.ptx_architecture(),
        runtime=runtime,
        driver=driver,
        emulated=module.emulated(),
    )
