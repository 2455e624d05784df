# SPDX-License-Identifier: Apache-2.0
"""The processes of one run, as torchrun starts them; alone, everything here does nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError

Value = TypeVar("Value")
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def _variable(name: str, default: int) -> int:
    """A whole number that torchrun sets; the default where it is not set, or empty."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if re.fullmatch(r"\d{1,9}", text) is None:
        wanted = "expected a whole number, as torchrun sets it"
        raise UserError(f"{name}: {wanted}, got {text!r}; unset it, or start the processes by torchrun")
    return int(text)


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    world = _variable("WORLD_SIZE", 1)
    if world < 1:
        raise UserError(f"WORLD_SIZE: expected at least 1, got {world}")
    return world


def rank() -> int:
    """The number of this process among them; 0 without torchrun."""
    found, world = _variable("RANK", 0), world_size()
    if found >= world:
        raise UserError(f"RANK: expected under {world}, the WORLD_SIZE (1 where it is not set), got {found}")
    return found


def local_rank() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return _variable("LOCAL_RANK", 0)


@dataclass(frozen=True)
class Processes:
    """rank of world. control: a gloo group for what the host decides, beside the gradients' own group."""

    rank: int = 0
    world: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes the files and the lines."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.world == 1:
            return flag
        said = torch.tensor([int(flag)])
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self.control)
        return bool(said.item())

    def sum(self, values: Tensor) -> Tensor:
        """Added over the processes: float64, on the CPU."""
        total = values.double().cpu()
        if self.world > 1:
            dist.all_reduce(total, group=self.control)
        return total

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, told to all; a UserError of it is raised in all."""
        if self.world == 1:
            return make()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = make()
            except (UserError, OSError) as error:
                told[1] = str(error)
        dist.broadcast_object_list(told, src=0, group=self.control)
        if told[1] is not None:
            raise UserError(told[1])
        made: Value = told[0]
        return made

    def gather(self, mine: Any) -> list[Any]:
        """What every process has, in the order of their ranks, to all."""
        if self.world == 1:
            return [mine]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, mine, group=self.control)
        return everyone

    def close(self) -> None:
        """Leaves the group."""
        if self.world > 1:
            dist.destroy_process_group()


def join(timeout: float, device: torch.device) -> tuple[Processes, torch.device]:
    """The processes that torchrun started this one among, alone without it; and where this one works.

    timeout: seconds after which waiting for the others is an error. device: cpu, or cuda, of which each
    process of a machine takes its own.
    """
    rank()  # refused here, in words, as the next
    if world_size() == 1 or not os.environ.get("RANK", "").strip():
        return Processes(), device
    missing = [name for name in RANK_VARIABLES if not os.environ.get(name, "").strip()]
    if missing:
        raise UserError(f"RANK is set but {', '.join(missing)} is not: start several processes by torchrun")
    place, _ = local_rank(), _variable("MASTER_PORT", 0)
    if not dist.is_available():
        raise UserError("several processes need a torch with torch.distributed")
    cuda = device.type == "cuda"
    if cuda:
        if device.index is not None:
            raise UserError(f"--device: expected cuda, each process takes its own, got {device}")
        if place >= torch.cuda.device_count():
            raise UserError(
                f"expected at most as many processes as GPUs, {torch.cuda.device_count()}, got number "
                f"{place} (counted from 0)"
            )
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    limit = timedelta(seconds=timeout)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=limit)
    control = dist.new_group(backend="gloo", timeout=limit) if cuda else None
    return Processes(dist.get_rank(), dist.get_world_size(), control), device


def abandon() -> None:
    """Leaves the group after an error, without waiting for the others."""
    if dist.is_available() and dist.is_initialized():
        with suppress(Exception):
            dist.destroy_process_group()
