# SPDX-License-Identifier: Apache-2.0
"""What the host does and does not do: launches, synchronisation, streams, devices."""

from __future__ import annotations

import pytest
import torch
from on_gpu import (
    DEVICE,
    DRY,
    KERNELS,
    OPS,
    call,
    forget,
    image,
    kernels_of,
    launches_of,
    marks,
    multiprocessors,
    name_of,
    on,
    sizes,
    stream,
    synchronize,
    without_synchronising,
)

import softdiff_kernels as sk
from softdiff_kernels.diffusion import (
    BlurCorruption,
    MaskCorruption,
    SoftDenoiser,
    SpectralCorruption,
    power_spectrum,
    sample_ancestral,
    sample_momentum,
    sample_multistep,
    time_steps,
)

pytestmark = marks

SMALL = sizes([(1, 3, 8, 8), (4, 3, 32, 32), (1, 1, 33, 47), (16, 3, 64, 64)], [(1, 2, 8, 8)])
FULL = sizes([(128, 128), (97, 130), (256, 256), (512, 512)], [(66, 70)])
KEY = sk.NoiseKey(5)


def ours(backend, names):
    """Those of the library's own kernels."""
    return [name for name in names if any(own in name for own in KERNELS[backend])]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", SMALL, ids=name_of)
def test_one_launch_up_to_64_px(backend, shape, op):
    # One kernel and nothing else, with numbers and with coefficients on the device. A CUDA loss has one more,
    # and planes that are not square pass through scratch above 24 px.
    x, y = image(*shape), image(*shape, seed=1)
    with sk.use_backend(backend):
        for std, level in ((1.5, 0.25), (on([1.5] * shape[0]), on([0.25] * shape[0]))):
            half, quarter = 0.5 * std, 0.5 * level

            def run(std=std, level=level, half=half, quarter=quarter):
                if op == "reverse_step":
                    return sk.reverse_step(x, y, blur_std_t=std, blur_std_s=half, a=level, b=quarter, key=KEY)
                if op == "momentum_step":
                    noises = {"noise_std_t": level, "noise_std_s": quarter}
                    return sk.momentum_step(x, y, blur_std_t=std, blur_std_s=half, **noises, key=KEY)
                return call(op, x, y, key=KEY, std=std, level=level)

            names = kernels_of(run)
            assert 1 <= len(names) <= launches_of(backend, op, shape), names
            assert ours(backend, names) == names, names


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("side", FULL, ids=name_of)
def test_one_launch_for_a_batch_that_fills_the_gpu(backend, side, op):
    # Beyond 64 px Triton's loss has a partial sum for each channel, which torch adds up: one kernel more.
    # A CUDA call takes a few launches for each chunk of planes that no block holds, and nothing of torch's.
    batch = -(-multiprocessors() // 3) + 1
    x = image(1, 3, *side).expand(batch, 3, *side).contiguous()
    with sk.use_backend(backend):
        names = kernels_of(lambda: call(op, x, x, key=KEY))
    assert 1 <= len(ours(backend, names)) <= launches_of(backend, op, x.shape), names
    others = 1 if op == "soft_score_loss" and backend == "triton" else 0
    assert len(names) <= len(ours(backend, names)) + others, names


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("side", FULL, ids=name_of)
def test_few_launches_for_a_single_large_image(backend, side, op):
    # A batch too small to occupy the GPU plane by plane is cut into strips: three launches at most by Triton.
    x = image(1, 1, *side)
    most = 3 if backend == "triton" else launches_of(backend, op, x.shape)
    with sk.use_backend(backend):
        names = kernels_of(lambda: call(op, x, x, key=KEY))
    assert 1 <= len(ours(backend, names)) <= most, names


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "shape", sizes([(2, 3, 64, 64), (2, 3, 128, 128), (60, 3, 128, 128)], [(2, 1, 8, 8)]), ids=name_of
)
def test_the_host_never_waits(backend, shape, op):
    # Numbers and device coefficients; keys of numbers, on the device and absent. The first calls compile.
    x, y = image(*shape), image(*shape, seed=1)
    std, level = on([1.5] * shape[0]), on([0.25])
    row = torch.tensor([4], device=DEVICE)
    keys = [KEY, sk.NoiseKey(3, row, row), None]
    with sk.use_backend(backend):
        for attempt in range(2):
            with without_synchronising() if attempt else torch.no_grad():
                for key in keys:
                    call(op, x, y, key=key)
                    call(op, x, y, key=key, std=std, level=level)


def test_a_training_step_never_waits(backend):
    x, y = image(2, 3, 16, 16).requires_grad_(), image(2, 3, 16, 16, seed=1)
    std = on([1.0, 2.0])
    with sk.use_backend(backend):
        for attempt in range(2):
            with without_synchronising() if attempt else torch.enable_grad():
                loss = sk.soft_score_loss(sk.blur(x, std), y, std, weight=std)
                loss.backward()
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("name", ["paper", "equal_snr", "mask"])
def test_a_trajectory_never_waits(backend, name):
    # The first makes the tables and masks that are kept on the device, the second reads and copies nothing.
    corruption = {
        "paper": lambda: BlurCorruption.paper((8, 8)),
        "equal_snr": lambda: SpectralCorruption.equal_snr(power_spectrum([torch.rand(8, 1, 8, 8)])),
        "mask": lambda: MaskCorruption((8, 8)),
    }[name]()
    x, ts = image(2, 1, 8, 8), time_steps(3)
    model = SoftDenoiser(lambda x_t, t: 0.5 * x_t, corruption)
    with sk.use_backend(backend):
        for sample in (sample_momentum, sample_ancestral, sample_multistep):
            for attempt in range(2):
                with without_synchronising() if attempt else torch.no_grad():
                    got = sample(model, x, ts, disable=True, key=KEY)
            assert bool(got.isfinite().all())


@pytest.mark.parametrize("op", OPS)
def test_streams_do_not_disturb_each_other(backend, op):
    # Calls enqueued in several streams at once give what they give one after another; memory for tables and
    # between launches is each call's own, or finished before it is shared.
    shapes = sizes(
        [(3, 3, 64, 64), (1, 3, 200, 256), (60, 3, 128, 128), (2, 3, 384, 384)],
        [(1, 1, 8, 8), (1, 1, 66, 70)],
    )
    pairs = [(image(*s), image(*s, seed=1)) for s in shapes]
    with sk.use_backend(backend):
        expected = [call(op, x, y, key=KEY) for x, y in pairs]
        for _ in range(1 if DRY else 5):
            synchronize()
            got = []
            for x, y in pairs:
                with stream():
                    got.append([call(op, x, y, key=KEY) for _ in range(3)])
            synchronize()
            for results, one in zip(got, expected, strict=True):
                assert all(torch.equal(r, one) for r in results)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", sizes([(2, 3, 64, 64), (2, 3, 200, 256)], [(1, 1, 8, 8)]), ids=name_of)
def test_a_launch_reads_what_its_stream_wrote(backend, shape, op):
    # Images and coefficients are written late in a side stream: a launch elsewhere would read NaN, and 90 px.
    x, y, std = image(*shape), image(*shape, seed=1), on([1.5])
    late = [torch.full_like(x, float("nan")), torch.full_like(y, float("nan")), on([90.0])]
    with sk.use_backend(backend):
        expected = call(op, x, y, key=KEY, std=std)
        call(op, *late[:2], key=KEY, std=late[2])
        synchronize()
        with stream():
            if not DRY:
                torch.cuda._sleep(20_000_000)
            for place, value in zip(late, (x, y, std), strict=True):
                place.copy_(value)
            got = call(op, *late[:2], key=KEY, std=late[2])
        synchronize()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("side", sizes([40, 200], [8, 66]))
def test_the_first_call_of_a_size_in_a_side_stream(backend, side):
    # Tables that a first call builds in one stream are read by the next call in another.
    x = image(2, 1, side, side + 1)
    with sk.use_backend(backend):
        expected = sk.dct2(x)
        for _ in range(1 if DRY else 10):
            synchronize()
            forget()
            with stream():
                if not DRY:
                    torch.cuda._sleep(10_000_000)
                first = sk.dct2(x)
            with stream():
                second = sk.dct2(x)
            synchronize()
            assert torch.equal(first, expected)
            assert torch.equal(second, expected)


@pytest.mark.parametrize("op", OPS)
def test_a_device_that_is_not_the_current_one(backend, op):
    if not DRY and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = DEVICE if DRY else torch.device("cuda", 1)
    x, y = image(2, 3, 16, 24), image(2, 3, 16, 24, seed=1)
    with sk.use_backend(backend):
        expected = call(op, x, y, key=KEY)
        got = call(op, x.to(other), y.to(other), key=KEY)
        if not DRY:
            assert torch.cuda.current_device() == DEVICE.index  # the guard gave it back
    assert got.device == other
    assert torch.equal(got.to(DEVICE), expected)


def test_threads_launch_at_once(backend):
    # Ops called from several Python threads, the first calls among them.
    from concurrent.futures import ThreadPoolExecutor

    images = [image(2, 3, 12 + s, 16, seed=s) for s in range(2 if DRY else 8)]

    def corrupt(x):
        # A thread has a choice of backend of its own.
        with sk.use_backend(backend):
            return sk.corrupt(x, 1.5, 0.1, key=KEY)

    with ThreadPoolExecutor(1 if DRY else 8) as pool:
        got = list(pool.map(corrupt, images))
    synchronize()
    for x, result in zip(images, got, strict=True):
        assert torch.equal(result, corrupt(x))
