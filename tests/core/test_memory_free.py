# SPDX-License-Identifier: Apache-2.0
"""How much memory a process may still use, and the sentence where there was none."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from softdiff_kernels import memory
from softdiff_kernels.memory import available_memory, is_out_of_memory, out_of_memory

resource = pytest.importorskip("resource")
ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 8000 kB\n"}
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
CPU_MOUNT = "34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limits that the tests themselves may run under."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_machine_alone(tmp_path: Path) -> None:
    assert available_memory(tree(tmp_path, MACHINE)) == 8000 * 1024
    assert available_memory(tmp_path / "no such place") is None


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        # Rule: the least of the machine's and of every group's from the process's own up to the mount.
        ({"job/step": (5_000_000, 2_000_000), "job": ("max", 9_000_000)}, 3_000_000),
        ({"job/step": ("max", 10), "job": (4_000_000, 3_500_000)}, 500_000),
        ({"job/step": ("max", 10), "job": ("max", 10)}, 8000 * 1024),
        ({"job/step": (10**12, 10)}, 8000 * 1024),
        # More in use than is allowed leaves nothing, not less than that.
        ({"job/step": (1000, 5000)}, 0),
    ],
)
def test_control_groups_of_version_2(
    groups: dict[str, tuple[object, int]], free: int, tmp_path: Path
) -> None:
    files = {"proc/self/cgroup": "0::/job/step\n", "proc/self/mountinfo": V2_MOUNT.format(root="/")}
    for name, (limit, used) in groups.items():
        files[f"sys/fs/cgroup/{name}/memory.max"] = f"{limit}\n"
        files[f"sys/fs/cgroup/{name}/memory.current"] = f"{used}\n"
    assert available_memory(tree(tmp_path, {**MACHINE, **files})) == free


def test_pages_of_files_in_a_group_count_as_free(tmp_path: Path) -> None:
    """Rule: a group that has read a large file is not full: such pages give way."""
    group = {"memory.max": "5000000", "memory.current": "4900000"}
    group["memory.stat"] = "anon 900000\nfile 4000000\nactive_file 1000000\ninactive_file 3000000\nshmem 7\n"
    files = {f"sys/fs/cgroup/{name}": text for name, text in group.items()}
    # Inside a container the group is the root of its own namespace.
    files |= {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2_MOUNT.format(root="/")}
    assert available_memory(tree(tmp_path, {**MACHINE, **files})) == 5_000_000 - 900_000


@pytest.mark.parametrize(
    ("path", "root", "folder"),
    [("/job/step", "/", "job/step"), ("/docker/4f", "/docker/4f", ""), ("/../../outside", "/", "")],
)
def test_control_groups_of_version_1(path: str, root: str, folder: str, tmp_path: Path) -> None:
    """Rule: also where the mount shows the group at its top, as in a container, or shows it not at all."""
    place = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    files = {
        "proc/self/cgroup": f"9:name=systemd:/x\n5:cpu:/elsewhere\n4:hugetlb,memory:{path}\n0::/\n",
        "proc/self/mountinfo": CPU_MOUNT + V1_MOUNT.format(root=root),
        f"{place}/memory.limit_in_bytes": "6000000\n",
        f"{place}/memory.usage_in_bytes": "5000000\n",
        f"{place}/memory.stat": "cache 9\ntotal_inactive_file 250000\ntotal_active_file 250000\n",
    }
    assert available_memory(tree(tmp_path, {**MACHINE, **files})) == 1_500_000
    # What the kernel writes where there is no limit.
    tree(tmp_path, {f"{place}/memory.limit_in_bytes": "9223372036854771712\n"})
    assert available_memory(tmp_path) == 8000 * 1024


def test_limits_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: what `ulimit -v` leaves is the limit less the address space in use, in pages."""
    tree(tmp_path, {**MACHINE, "proc/self/statm": "100 50 10 1 0 40 0\n"})
    page = resource.getpagesize()
    for name, used in (("RLIMIT_AS", 100), ("RLIMIT_DATA", 40)):
        limits = defaultdict(lambda: resource.RLIM_INFINITY, {getattr(resource, name): 1000 * page})
        monkeypatch.setattr(resource, "getrlimit", lambda which, of=limits: (of[which], -1))
        assert available_memory(tmp_path) == (1000 - used) * page


def test_errors_that_mean_that_memory_ran_out() -> None:
    """Rule: numpy's, Python's and torch's, on a CPU and a GPU; no other RuntimeError."""
    with pytest.raises(MemoryError) as numpys:
        np.empty(2**62, np.uint8)
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**62, dtype=torch.uint8)
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of ...")
    blas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    mapped = OSError(12, "Cannot allocate memory")
    for error in (MemoryError(), numpys.value, torchs.value, gpu, blas, mapped):
        assert is_out_of_memory(error)
        said = out_of_memory(error)
        assert said.startswith("out of GPU memory" if error in (gpu, blas) else "out of memory")
        assert "need less" in said and "\n" not in said
    assert "4.00 EiB more were requested" in out_of_memory(numpys.value)
    assert f"{2**62} bytes more were requested" in out_of_memory(torchs.value)
    assert "20.00 GiB more were requested" in out_of_memory(gpu)
    for other in (RuntimeError("shapes differ"), ValueError("out of memory"), OSError(28, "No space")):
        assert not is_out_of_memory(other)


@pytest.mark.skipif(memory.available_memory() is None, reason="no /proc")
def test_a_command_under_a_limit_ends_in_a_sentence(tmp_path: Path) -> None:
    """Rule: what a limit on the process leaves is counted before a large array is made, and a failed
    allocation elsewhere is a sentence, too."""
    np.savez_compressed(tmp_path / "many.npz", images=np.zeros((500, 512, 512), np.uint8))
    program = """
import resource, sys, torch
from softdiff_kernels.cli import main
import softdiff_kernels.commands.dataset, PIL.Image
torch.set_num_threads(1)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20),) * 2)
if sys.argv[1] == "unknown":
    softdiff_kernels.data.decode.available_memory = lambda: None
sys.exit(main(["dataset", sys.argv[2]]))
"""
    for room, words in (("known", "bytes of memory are free"), ("unknown", "out of memory")):
        command = [sys.executable, "-c", program, room, str(tmp_path / "many.npz")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("softdiff: error: ") and done.stderr.count("\n") == 1
        assert words in done.stderr


def test_the_sentence_needs_no_memory_to_ask_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise MemoryError

    monkeypatch.setattr(memory, "available_memory", none)
    assert memory.out_of_memory(MemoryError()).startswith("out of memory; smaller")
