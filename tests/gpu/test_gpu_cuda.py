# SPDX-License-Identifier: Apache-2.0
"""What is particular to the CUDA kernels: sizes up to 1024 px, first calls in a capture, errors in words."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from checks import assert_mean_kept
from on_gpu import (
    DEVICE,
    DRY,
    OPS,
    call,
    check,
    image,
    marks_of,
    mask_of,
    name_of,
    on,
    sizes,
    spread,
    synchronize,
)

import softdiff_kernels as sk

pytestmark = marks_of("cuda")

KEY = sk.NoiseKey(5, 1)
# Beyond what Triton's take: even, odd, prime, one line, and the largest.
LARGE = sizes(
    [(1, 3, 513, 640), (2, 1, 1000, 30), (1, 1, 1, 1024), (1, 1, 1021, 769), (1, 2, 1024, 1024)],
    [(1, 1, 3, 520)],
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("shape", LARGE, ids=name_of)
def test_up_to_1024_px(shape, dtype):
    x, y = image(*shape, dtype=dtype), image(*shape, seed=1, dtype=dtype)
    std, mask = spread(shape[0], high=200.0), mask_of(x)
    check("cuda", "dct2", x)
    check("cuda", "idct2", x)
    for value in (0.4, 3.0, 60.0):
        blurred = check("cuda", "blur", x, value)
        if dtype == torch.float32:
            assert_mean_kept(blurred, x)
    check("cuda", "blur", x, std, floor=0.2)
    check("cuda", "corrupt", x, std, 0.2, key=KEY, return_residual=True)
    blurs = {"blur_std_t": std, "blur_std_s": 0.7 * std}
    check("cuda", "reverse_step", x, y, **blurs, a=0.4, b=0.2, key=KEY)
    check("cuda", "momentum_step", x, y, **blurs, noise_std_t=0.2, noise_std_s=0.1, key=KEY)
    check("cuda", "soft_score_loss", x, y, 2.5, reduction="none")
    check("cuda", "spectral_mix", [x, y, x], [mask, mask, 0.5 * mask], noise_mask=mask, key=KEY)


FIRST = """
    import torch, softdiff_kernels as sk
    import on_gpu
    x, y = on_gpu.image(2, 3, *{side}), on_gpu.image(2, 3, *{side}, seed=1)
    on_gpu.mask_of(x)
    key = sk.NoiseKey(5, 1)
    with sk.use_backend("cuda"):
        replay, result = on_gpu.captured(lambda: on_gpu.call("{op}", x, y, key=key), warm=0)
        for _ in range(2):
            result.fill_(float("nan"))
            replay()
            on_gpu.synchronize()
            assert torch.equal(result, on_gpu.call("{op}", x, y, key=key))
            result_of_first = result.clone()
        replay()
        on_gpu.synchronize()
        assert torch.equal(result, result_of_first)
"""


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("side", sizes([(20, 24), (64, 64), (150, 200)], [(8, 6)]), ids=name_of)
def test_the_first_call_of_a_process_inside_a_capture(side, op):
    # No warm-up: loading the kernel, raising its shared memory and building the tables happen in the capture.
    # What was made there belongs to the graph, and calls outside, between its replays, have their own.
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    program = f"import sys; sys.path[:0] = {folders!r}\n" + textwrap.dedent(FIRST.format(op=op, side=side))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def _refused(device):
    """A launch of dct2's kernels that the runtime refuses before anything runs, so that no table is needed: a
    block of lines.h with columns of 4000 px wants more shared memory than there is.
    """
    from softdiff_kernels import _cuda
    from softdiff_kernels.backends import memory

    x = image(1, 1, 4000, 8)
    images = memory.image(x), memory.image(torch.empty_like(x))
    place, plan = (device, 0, 0, 0, 0, 0), (2, 0, 0, 1, 0, 0)
    return _cuda.dct2((place, plan), ((1, 1, 4000, 8), *images, False))


@pytest.mark.parametrize("device", [0, 99], ids=["too much shared memory", "no such device"])
def test_a_launch_that_is_refused_is_told_in_a_sentence(device):
    # The kernel, the shape and CUDA's name for the error; it is told once and leaves nothing behind: torch
    # asks for the last error after its own launches, and the current device is the same.
    sentence = r"softdiff CUDA kernel dct2 for images \[1, 1, 4000, 8\]: cudaError\w+ \(.+\)"
    with pytest.raises(RuntimeError, match=sentence):
        _refused(device)
    x = torch.ones(8, device=DEVICE)
    assert float((x + x).sum()) == 16.0
    synchronize()
    if not DRY:
        assert torch.cuda.current_device() == DEVICE.index
    check("cuda", "blur", image(2, 3, 32, 32), 1.5)


@pytest.mark.parametrize("op", OPS)
def test_a_call_on_the_second_gpu_after_an_error_there(op):
    if DRY or torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1)
    x, y = image(2, 3, 70, 40), image(2, 3, 70, 40, seed=1)
    with pytest.raises(RuntimeError, match="softdiff CUDA kernel dct2"):
        _refused(1)
    assert torch.cuda.current_device() == DEVICE.index
    with sk.use_backend("cuda"), torch.cuda.stream(torch.cuda.Stream(other)):
        expected = call(op, x, y, key=KEY)
        torch.cuda.synchronize()
        got = call(op, x.to(other), y.to(other), key=KEY, std=on([1.5]).to(other))
        torch.cuda.synchronize(other)
    assert torch.equal(got.cpu(), expected.cpu())
