# SPDX-License-Identifier: Apache-2.0
"""Two processes over gloo, started once for all that a test file asks of them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
needs_gloo = [
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo here"
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="gloo over loopback"),
]


def _work(rank: int, port: int, folder: str, work: Callable[[int], Any]) -> None:
    about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in about.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["CUDA_VISIBLE_DEVICES"] = (
        ""  # else FSDP and accelerate would take a GPU, which gloo does not serve
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        torch.save(work(rank), os.path.join(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def run(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)`, a function of a module's top level, gives in each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(rank, port, str(folder), work), daemon=True)
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    stuck = [process for process in processes if process.is_alive()]
    for process in stuck:
        process.terminate()
    assert not stuck, "a rank did not finish in 120 s"
    assert [process.exitcode for process in processes] == [0] * WORLD
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
