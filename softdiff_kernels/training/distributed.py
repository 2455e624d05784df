# SPDX-License-Identifier: Apache-2.0
"""The processes of a run, as torchrun starts them, and the device and precision that each works in.

In a run of one process the methods of `Processes` do nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError
from ..memory import is_out_of_memory

Value = TypeVar("Value")
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU if there is one. UserError for a device that is missing or is
    neither the CPU nor a CUDA GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = "expected auto, cpu, cuda or cuda:N"
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise UserError(f"--device: {wanted}, got {name!r}; softdiff runs on the CPU and on CUDA GPUs")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        why = str(error).splitlines()[0]
        raise UserError(f"--device: {wanted}, got {name!r}, which is not usable here ({why})") from None
    return device


def set_precision(precision: str) -> None:
    """Turns TF32 products on for precision tf32, and off for every other."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which the network runs: bfloat16 or float16 under autocast, or neither."""
    low = AUTOCAST.get(precision)
    return torch.autocast(device.type, low) if low else nullcontext()


def _variable(name: str, default: int) -> int:
    """A variable of torchrun as a whole number; the default where it is not set or empty."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if re.fullmatch(r"\d{1,9}", text) is None:
        wanted = "expected a whole number, as torchrun sets it"
        raise UserError(f"{name}: {wanted}, got {text!r}; unset it, or start the processes by torchrun")
    return int(text)


def world_size() -> int:
    """The number of processes that torchrun started; 1 without torchrun."""
    world = _variable("WORLD_SIZE", 1)
    if world < 1:
        raise UserError(f"WORLD_SIZE: expected at least 1, got {world}")
    return world


def rank() -> int:
    """The index of this process; 0 without torchrun."""
    number, world = _variable("RANK", 0), world_size()
    if number >= world:
        raise UserError(f"RANK: expected under {world}, the WORLD_SIZE (1 where it is not set), got {number}")
    return number


def local_rank() -> int:
    """The index of this process on its machine, which is also the index of its GPU."""
    return _variable("LOCAL_RANK", 0)


@dataclass
class Processes:
    """This process is number `rank` of `world`; for a `with` statement, which leaves the others at its end.

    control: a gloo group for decisions of the host; gradients use the default group, also where it is one of
    gloo. advice: what to do where another process is lost; the statement makes a UserError of that.
    """

    rank: int = 0
    world: int = 1
    control: Any = None
    advice: str = "start it again"

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.world == 1:
            return
        # The last reference: with it the threads of the group end. One that lived on could still have to free
        # a tensor of Python's when the interpreter ends, and C++ terminates the process for that. The default
        # group is no substitute: DistributedDataParallel keeps it for good (torch 2.13).
        self.control = None
        _leave()
        if error is not None and (lost := lost_process(error)) is not None:
            raise UserError(f"{lost}; {self.advice}") from error

    @property
    def first(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags.item())

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes: float64, on the CPU."""
        total = values.double().cpu()
        if self.world > 1:
            dist.all_reduce(total, group=self.control)
        return total

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Calls `make` in the first process and returns its result in all; a UserError is raised in all."""
        if self.world == 1:
            return make()
        sent: list[Any] = [None, None]  # the result, the error
        if self.first:
            try:
                sent[0] = make()
            except (UserError, OSError) as error:
                sent[1] = str(error)
        dist.broadcast_object_list(sent, src=0, group=self.control)
        if sent[1] is not None:
            raise UserError(sent[1])
        made: Value = sent[0]
        return made

    def gather(self, mine: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks, in each process."""
        if self.world == 1:
            return [mine]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, mine, group=self.control)
        return everyone

    def agree(self, mine: Mapping[str, Any]) -> None:
        """UserError, in all processes, where one has other values than the first: its command line or its
        files differ, and each would train another network."""
        everyone = self.gather(dict(mine))
        for number, theirs in enumerate(everyone):
            other = [name for name, value in everyone[0].items() if theirs[name] != value]
            if other:
                shown = (f"{n}: {_short(everyone[0][n])} and {_short(theirs[n])}" for n in other)
                raise UserError(
                    f"expected the same options and images in all processes, got others in process {number} "
                    f"than in process 0 ({'; '.join(shown)})"
                )


def join(timeout: float, device: torch.device) -> tuple[Processes, torch.device]:
    """The processes that torchrun started, or this one alone; and the device of this process.

    timeout: seconds after which waiting for another process is an error. device: cpu, or cuda, of which each
    process on a machine takes its own.
    """
    rank()  # a wrong RANK or WORLD_SIZE is a UserError
    if world_size() == 1 or not os.environ.get("RANK", "").strip():
        return Processes(), device
    missing = [name for name in RANK_VARIABLES if not os.environ.get(name, "").strip()]
    if missing:
        raise UserError(f"RANK is set but {', '.join(missing)} is not: start several processes by torchrun")
    gpu, _ = local_rank(), _variable("MASTER_PORT", 0)
    if not dist.is_available():
        raise UserError("several processes need a torch with torch.distributed")
    cuda = device.type == "cuda"
    if cuda:
        if device.index is not None:
            raise UserError(f"--device: expected cuda, each process takes its own, got {device}")
        if gpu >= torch.cuda.device_count():
            raise UserError(
                f"expected at most as many processes as GPUs, {torch.cuda.device_count()}, got process "
                f"{gpu} (counted from 0)"
            )
        device = torch.device("cuda", gpu)
        torch.cuda.set_device(device)
    limit = timedelta(seconds=timeout)
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=limit)
        control = dist.new_group(backend="gloo", timeout=limit)
    except (RuntimeError, ValueError) as error:
        _leave()
        raise UserError(
            f"expected {world_size()} processes to meet at {os.environ['MASTER_ADDR']}, this one, number "
            f"{rank()}, met not all of them within {timeout:g} s ({_cause(error)}); see their messages, and "
            "whether the machines reach each other"
        ) from error
    return Processes(dist.get_rank(), dist.get_world_size(), control), device


_LOST = re.compile(
    r"gloo.*(closed|reset|broken pipe|timed? ?out|timeout|unreachable|no route|refused)", re.I | re.S
)
"""Messages of gloo for a process that is gone or does not answer; those of NCCL and the store have types."""
_LOST_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError")


def _cause(error: BaseException) -> str:
    """The first line of torch's message, without the place in its source."""
    line = re.sub(r"^\[[^\]]*\]\s*", "", (str(error).splitlines() or [""])[0])
    return _short(line.partition(". This is typically")[0])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def lost_process(error: BaseException) -> str | None:
    """A sentence about the process that an error of torch.distributed says is lost; None for other errors."""
    known = type(error).__name__ in _LOST_ERRORS
    if not known and not (isinstance(error, RuntimeError) and _LOST.search(str(error))):
        return None
    return (
        f"another process of the run ended, or did not answer in time ({_cause(error)}); see the message of "
        "the one that ended first"
    )


def _leave() -> None:
    """Leaves the groups without waiting for the other processes."""
    if dist.is_initialized():
        with suppress(Exception):
            dist.destroy_process_group()
