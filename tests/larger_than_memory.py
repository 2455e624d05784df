# SPDX-License-Identifier: Apache-2.0
"""Shows that a set larger than memory trains and resumes, and what reading it from the disk costs.

    python tests/larger_than_memory.py limit FOLDER PHOTOS.npz [--gib 2] [--limit-gib 1]
    python tests/larger_than_memory.py cost FOLDER PHOTOS.npz [--steps 40]

PHOTOS.npz has small images [N, H, W, 3] in `images`, such as CIFAR-10's; tiles of them make larger ones. It
takes minutes and gigabytes, so no test runs it: tests/training/test_training_on_disk.py goes the same way
with twenty images. `limit` runs every command under RLIMIT_DATA, which bounds the memory that a process has
for itself, and reports its peak resident set, which has the libraries' pages too.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIDE = 256


def make_photos(folder: Path, photos: Path, size: int) -> int:
    """BMP files of SIDE x SIDE from random tiles, `size` bytes of pixels in total; returns their number."""
    tiles, rng = np.load(photos)["images"], np.random.default_rng(0)
    side, count = tiles.shape[1], size // (3 * SIDE * SIDE) + 1
    across = SIDE // side
    folder.mkdir(parents=True)
    for i in range(count):
        chosen = tiles[rng.integers(0, len(tiles), across * across)]
        rows = chosen.reshape(across, across, side, side, 3).swapaxes(1, 2).reshape(SIDE, SIDE, 3)
        Image.fromarray(rows).save(folder / f"{i:06d}.bmp")
    return count


def softdiff(limit: int, *argv: str, expected: int = 0) -> str:
    """Runs a command with `limit` bytes of data, prints its time and peak, and returns what it said."""
    start = time.perf_counter()

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command = [sys.executable, "-m", "softdiff_kernels", *argv]
    # A pipe of its own would hide the usage of this one child.
    log = Path("softdiff.log")
    with open(log, "wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, preexec_fn=bound)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    said = log.read_text()
    took, peak = time.perf_counter() - start, usage.ru_maxrss / 1024
    cpu = usage.ru_utime + usage.ru_stime
    print(f"  {took:5.0f} s ({cpu:4.0f} s CPU), peak {peak:5.0f} MiB: softdiff {' '.join(argv)}", flush=True)
    assert child.returncode == expected, said
    return said


def show_limit(work: Path, photos: Path, gib: float, limit_gib: float) -> None:
    """Packs, trains from the packed set and from the files, and resumes, all under the limit."""
    from safetensors.torch import load_file

    os.chdir(work)
    limit = int(limit_gib * 2**30)
    count = make_photos(Path("photos"), photos, int(gib * 2**30))
    print(
        f"{count} images of {SIDE} px, {count * 3 * SIDE * SIDE / 2**30:.2f} GiB; RLIMIT_DATA {limit_gib} GiB"
    )
    refused = softdiff(limit, "dataset", "photos", "--out", "photos.npz", expected=2)
    print("   ", refused.strip().splitlines()[-1])  # the limit is one: an array of all images is refused
    softdiff(limit, "dataset", "photos", "--out", "photos.npy")
    small = ("--width", "8", "--blocks", "1", "--patch", "8", "--batch", "8", "--sample-count", "0")
    run = ("train", *small, "--save-every", "2", "--log-every", "1", "--no-progress", "--warmup", "2")
    softdiff(limit, *run, "--data", "photos.npy", "--outdir", "whole", "--steps", "4")
    softdiff(limit, *run, "--data", "photos.npy", "--outdir", "half", "--steps", "2")
    softdiff(limit, "train", "--resume", "half", "--steps", "4", "--allow-changes")
    softdiff(limit, *run, "--data", "photos", "--outdir", "files", "--steps", "4")
    states = [load_file(f"{name}/state-00000004.safetensors") for name in ("whole", "half", "files")]
    for name, state in zip(("resumed", "from files"), states[1:], strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in states[0].items()), name
    print("the resumed run and the one from the files have the state of the whole run, bit for bit")


def show_cost(work: Path, photos: Path, steps: int) -> None:
    """Steps at CIFAR's size from the packed set and from memory, in turns: medians of wall and CPU time."""
    from softdiff_kernels.commands.dataset import DatasetConfig, convert
    from softdiff_kernels.data import load_images
    from softdiff_kernels.diffusion import BlurCorruption, PlainGaussianPrior
    from softdiff_kernels.training.config import TrainConfig
    from softdiff_kernels.training.trainer import Trainer

    packed = work / "cifar.npy"
    convert(DatasetConfig(str(photos), out=str(packed), overwrite=True), say=lambda _: None)
    corruption, prior = BlurCorruption.paper((32, 32)), PlainGaussianPrior((32, 32), 3, 1.0)
    trainers = []
    for source, stream in ((photos, False), (packed, True)):
        config = TrainConfig(str(source), width=32, blocks=1, batch=32, sample_count=0)
        images = load_images(str(source), stream=stream)
        trainers.append(Trainer(config, images, corruption, prior, torch.device("cpu")))
    walls: list[list[float]] = [[], []]
    cpus: list[list[float]] = [[], []]
    for step in range(steps + 2):
        for which in ((0, 1), (1, 0))[step % 2]:
            wall, cpu = time.perf_counter(), time.process_time()
            trainers[which].advance()
            if step >= 2:
                walls[which].append(time.perf_counter() - wall)
                cpus[which].append(time.process_time() - cpu)
    for trainer in trainers:
        trainer.close()
    for name, times in (("wall", walls), ("CPU", cpus)):
        memory, disk = map(statistics.median, times)
        pairs = sorted(b / a for a, b in zip(*times, strict=True))
        low, high = pairs[len(pairs) // 5], pairs[-1 - len(pairs) // 5]
        print(
            f"{name} time of a step: {memory * 1e3:.1f} ms from memory, {disk * 1e3:.1f} ms from the disk; "
            f"ratio of pairs: median {statistics.median(pairs):.4f}, 20 % {low:.4f}, 80 % {high:.4f}"
        )
    order, pixels = trainers[1].order, trainers[1].pixels
    gathers = []
    for first in range(0, 50 * 128, 128):
        index, cpu = order(first, 128), time.process_time()
        _ = pixels[index]
        gathers.append(time.process_time() - cpu)
    print(f"CPU time to gather 128 images: {statistics.median(gathers) * 1e3:.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("limit", "cost"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--limit-gib", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.what == "limit":
        show_limit(given.folder, given.photos.resolve(), given.gib, given.limit_gib)
    else:
        show_cost(given.folder, given.photos.resolve(), given.steps)
