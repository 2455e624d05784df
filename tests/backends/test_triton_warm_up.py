# SPDX-License-Identifier: Apache-2.0
"""Kernels compiled in advance: what a run launches is what its warm-up compiled, and what compiles later is
logged. Seen at a driver that compiles for sm_90 and enqueues nothing; most tests compile nothing either.
"""

from __future__ import annotations

import logging
import threading

import pytest
import torch

import softdiff_kernels as sk
from softdiff_kernels import caches
from softdiff_kernels.backends import triton as backend
from softdiff_kernels.data import ImageSet
from softdiff_kernels.diffusion import (
    CORRUPTIONS,
    SAMPLERS,
    BlurCorruption,
    GaussianDCTPrior,
    SoftDenoiser,
    generate,
)
from softdiff_kernels.training.config import TrainConfig
from softdiff_kernels.training.presets import PRESETS
from softdiff_kernels.training.trainer import Trainer

pytest.importorskip("triton")
if backend.interpreted():
    pytest.skip("nothing is compiled where Triton interprets", allow_module_level=True)

from stub_driver import stubbed

from softdiff_kernels.backends.triton import launch, ops

CPU = torch.device("cpu")


def kernels(recorded):
    """What is compiled for launches."""
    return {(r.kernel, r.kinds, r.constants, r.warps, r.stages) for r in recorded}


def names(found):
    return {launch.op_of(key[0]) for key in found}


def described(found):
    """Kernels as a failing test shows them."""
    return "\n".join(f"{launch.op_of(k)} {kinds} {constants}" for k, kinds, constants, *_ in found)


@pytest.fixture
def advance(monkeypatch):
    """What warm-ups would compile: the set that they add to, while they compile nothing."""
    wanted = set()

    def compile_all(recorded):
        wanted.update(kernels(recorded))
        return len(wanted), 0

    monkeypatch.setattr(launch, "compile_all", compile_all)
    return wanted


def make_trainer(side, channels, **changes):
    """A trainer with a small network, whose last grid batch is one image."""
    config = {
        **{"width": 4, "blocks": 1, "multipliers": (1,)},
        **{"batch": 2, "sample_count": 3, "sample_steps": 3, "schedule": "paper", "nodes": 4, **changes},
    }
    pixels = torch.randint(0, 256, (4, channels, side, side), dtype=torch.uint8)
    images = ImageSet(pixels, "noise")
    config = TrainConfig(data="noise", **config)
    corruption, _ = CORRUPTIONS[config.corruption].make(images, config.corruption_options())
    prior = GaussianDCTPrior.fit(images.batches(), corruption)
    return Trainer(config, images, corruption, prior, CPU)


def launched(trainer):
    """What a training step and a grid of samples launch, with the trainer's own network."""
    with launch.recording() as recorded, pytest.MonkeyPatch.context() as apart:
        # Else `generate` would compile by itself what the warm-up has left out.
        apart.setattr(sk.functional, "rehearse", lambda call, device: sk.WarmUp(0, 0, 0.0))
        trainer.advance()
        trainer.sample(range(trainer.config.sample_count))
    return kernels(recorded)


KEPT = ("prediction", "loss", "sampler", "flip", "network", "corruption")
RUNS = [(8, 1, "digits"), (28, 1, "mnist"), (32, 3, "cifar10"), (72, 3, "celeba64")]
RUNS += [(8, 1, "digits-paper"), (28, 1, "mnist-paper"), (32, 3, "cifar10-paper"), (64, 3, "celeba64-paper")]
RUNS += [(28, 1, "mnist-blurring"), (28, 1, "mnist-ihdm"), (28, 1, "mnist-mask"), (32, 3, "cifar10-blurring")]
# What a run of a corruption launches beside `corrupt`, and for mirrored images `normal`.
OPS = {
    "soft": {"step", "soft_score_loss"},
    # x0_hat from the noise, and the ancestral step; the white noise is made apart, as it is the target.
    "blurring": {"normal", "spectral_mix", "soft_score_loss"},
    "ihdm": {"step", "spectral_loss"},
    "mask": set(),  # over pixels
}


def test_every_preset_is_a_run_here():
    assert {preset for _, _, preset in RUNS} == set(PRESETS)


@pytest.mark.parametrize(("side", "channels", "preset"), RUNS)
def test_a_run_launches_what_its_warm_up_compiled(advance, side, channels, preset):
    """Rule: no kernel is left to be compiled in mid-run. A step of the trainer and a grid, the last batch of
    which is one image, launch nothing that `Trainer.warm_up` has not compiled."""
    pytest.importorskip("diffusers")
    options = {name: PRESETS[preset][name].value for name in KEPT if name in PRESETS[preset]}
    trainer = make_trainer(side, channels, **options)
    with stubbed():
        assert trainer.warm_up().compiled == len(advance)
        needed = launched(trainer)
    wanted = {"corrupt", *(["normal"] if options.get("flip") else [])}
    assert wanted | OPS[options["corruption"]] == names(needed)
    assert needed <= advance, described(needed - advance)


@pytest.mark.parametrize("loss", ["plain", "increment"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_losses_and_precisions_are_covered(advance, loss, precision):
    """Rule: the same for each loss, with its backward pass, and under autocast."""
    pytest.importorskip("diffusers")
    trainer = make_trainer(8, 1, loss=loss, precision=precision)
    with stubbed():
        trainer.warm_up()
        needed = launched(trainer)
    assert needed and needed <= advance, described(needed - advance)


def test_both_forms_of_large_planes_are_covered(advance, monkeypatch):
    """Rule: above 128 px a batch that fills the GPU takes one launch and a small one three; a run whose last
    batch is small has compiled both."""
    pytest.importorskip("diffusers")
    trainer = make_trainer(136, 3)
    with stubbed():
        monkeypatch.setattr(launch, "multiprocessors", lambda device: 4)  # 2 images of 3 channels fill it
        trainer.warm_up()
        needed = launched(trainer)
    groups = {constants[2][2] for kernel, _, constants, *_ in needed if launch.op_of(kernel) == "step"}
    assert groups == {0, 1, 2, 3}
    assert needed <= advance, described(needed - advance)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_sampling_launches_what_its_warm_up_compiled(advance, sampler):
    """Rule: `generate` compiles what it launches, for every sampler, options included."""
    corruption = BlurCorruption.paper((16, 16))
    prior = GaussianDCTPrior.fit([torch.rand(8, 3, 16, 16)], corruption)
    denoiser = SoftDenoiser(lambda x, t: torch.zeros_like(x), corruption)
    said = []
    options = {"eta": 0.5} if sampler == "ddim" else {}
    how = {"sampler": sampler, "steps": 4, "batch": 2, "options": options, "say": said.append}
    with stubbed(), launch.recording() as recorded:
        generate(denoiser, prior, range(5), **how)
    needed = kernels(recorded)
    assert names(needed) == {"corrupt", "spectral_mix" if sampler == "ancestral" else "step"}
    assert needed <= advance, described(needed - advance)
    (line,) = said
    assert line.startswith(f"compiled {len(advance)} kernels in ")


def test_the_public_warm_up_covers_the_same(advance):
    """Rule: named shapes, dtypes and the default ops are what the trainer's ops and its sampler launch."""
    pytest.importorskip("diffusers")
    trainer = make_trainer(64, 3)
    with stubbed():
        sk.warm_up([64, 3, 64, 64], [torch.uint8, torch.float32])
        needed = launched(trainer)
    assert names(needed) == {"corrupt", "step", "soft_score_loss"}
    assert needed <= advance, described(needed - advance)


def test_every_op_can_be_named(advance):
    """Rule: `ops` takes the name of every public op, and compiles kernels for it."""
    with stubbed():
        for op in sk.functional.__all__:
            advance.clear()
            sk.warm_up([2, 3, 16, 16], ops=op)
            assert advance, op


def test_a_second_warm_up_compiles_nothing(monkeypatch, tmp_path):
    """Rule: what was compiled is found again, in memory, and on the disk by the next process."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with stubbed():
        first = sk.warm_up([2, 1, 16, 16], ops=["dct2"])
        assert (first.compiled, first.found) == (1, 0) and first.seconds > 0
        again = sk.warm_up([[2, 1, 16, 16], [5, 1, 16, 16]], ops="dct2")
        assert (again.compiled, again.found) == (0, 1)
        launch.forget()
        third = sk.warm_up([2, 1, 16, 16], ops=["dct2"])
        assert (third.compiled, third.found) == (0, 1)
        monkeypatch.setattr(launch, "_build", lambda *_: pytest.fail("compiled in the run"))
        sk.dct2(torch.zeros(3, 1, 16, 16))


def test_kernels_are_compiled_side_by_side(monkeypatch):
    """Rule: each of two compilations waits for the other to have begun, which ends only where both run."""
    both = threading.Barrier(2, timeout=60)

    class Built:
        kernel, run, asm = b"", None, {}

        class src:
            compiled = True

    def build(key, target):
        both.wait()
        return Built()

    monkeypatch.setattr(launch, "_build", build)
    monkeypatch.setattr(launch, "_cores", lambda: 2)
    with stubbed():
        assert sk.warm_up([2, 1, 16, 16], ops=["dct2", "idct2"]).compiled == 2


def test_nothing_is_done_where_nothing_is_compiled():
    """Rule: without Triton's kernels a warm-up is free: no image is made, however large its shape."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    warm = sk.warm_up([2**40, 3, 512, 512])
    assert warm == sk.WarmUp(0, 0, 0.0)


@pytest.mark.parametrize("shapes", [[], [3, 64, 64], [1, 3, 0, 64], "64", [[1, 3, 8, 8], [8, 8]], None, 3.0])
def test_shapes_that_are_none_are_refused(shapes):
    with pytest.raises(ValueError, match=r"warm_up: expected shapes as \[B, C, H, W\]"):
        sk.warm_up(shapes)


def test_unknown_ops_are_refused():
    with pytest.raises(ValueError, match="warm_up: expected ops as one of 'blur', 'corrupt'"):
        sk.warm_up([1, 3, 8, 8], ops=["blurr"])


@pytest.mark.parametrize("op", ["corrupt", "momentum_step", "reverse_step", "soft_score_loss", "blur"])
def test_a_batch_of_one_shares_the_kernels_of_larger_ones(monkeypatch, op):
    """Rule: coefficients [B], read at any address, and key tables, of one row or one each, are no reason to
    compile: up to 128 px one kernel serves every batch."""
    # A number is float64 [1] in host memory. float32 [1] stands for a tensor on the device.
    monkeypatch.setattr(ops, "number", lambda c: c.item() if c.dtype == torch.float64 else None)
    found = []
    with stubbed():
        for batch, first in ((1, 0), (7, 0), (64, 0), (7, 1)):
            x, each = torch.zeros(batch, 3, 64, 64), torch.ones(batch + first)[first:]
            step = {"blur_std_t": each, "blur_std_s": each}
            key = sk.NoiseKey(0, stream=torch.zeros(batch, dtype=torch.int64))
            calls = {
                "blur": lambda k, x=x, e=each: sk.blur(x, e),
                "corrupt": lambda k, x=x, e=each: sk.corrupt(x, e, e, key=k, return_residual=True),
                "momentum_step": lambda k, x=x, e=each, s=step: sk.momentum_step(
                    x, x, **s, noise_std_t=e, noise_std_s=e, key=k
                ),
                "reverse_step": lambda k, x=x, e=each, s=step: sk.reverse_step(x, x, **s, a=e, b=e, key=k),
                "soft_score_loss": lambda k, x=x, e=each: sk.soft_score_loss(x, x, e, weight=e),
            }
            for k in (key, None):
                with launch.recording() as recorded:
                    calls[op](k)
                found.append(kernels(recorded))
    assert all(one == found[0] and len(one) == 1 for one in found)


def test_a_kernel_that_compiles_in_mid_run_is_logged_once(monkeypatch, tmp_path, caplog):
    """Rule: before any warm-up a compilation is information; after one it is a warning that names the op, the
    images and the seconds, once for each kernel."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(launch, "_warm", False)
    caplog.set_level(logging.INFO, "softdiff_kernels")
    with stubbed():
        sk.dct2(torch.zeros(2, 1, 16, 8))
        sk.warm_up([2, 1, 16, 16], ops=["dct2"])
        for batch in (2, 2, 3):
            sk.dct2(torch.zeros(batch, 1, 16, 16))
            sk.dct2(torch.zeros(batch, 1, 16, 24))
        launch.forget()
        sk.dct2(torch.zeros(2, 1, 16, 24))  # from the disk: nobody waited
    before, after = caplog.records
    assert before.levelno == logging.INFO and "[2, 1, 16, 8]" in before.getMessage()
    assert after.levelno == logging.WARNING
    text = after.getMessage()
    assert text.startswith("dct2: compiled a Triton kernel for images [2, 1, 16, 24] of float32 in ")
    assert "softdiff_kernels.warm_up" in text


def test_a_capture_that_lacks_its_kernel_names_the_warm_up(monkeypatch):
    """Rule: CUDA refuses to load a module during a capture; the error says what to do before it."""
    monkeypatch.setattr(caches, "_pinned", [])
    with stubbed() as driver, monkeypatch.context() as captured:
        captured.setattr(torch.cuda, "is_initialized", lambda: True)
        captured.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

        def refuse(*_):
            raise RuntimeError("Triton Error [CUDA]: operation not permitted when stream is capturing")

        captured.setattr(driver.utils, "load_binary", refuse)
        with pytest.raises(RuntimeError, match=r"(?s)dct2: expected .* call softdiff_kernels\.warm_up"):
            sk.dct2(torch.zeros(1, 1, 16, 16))


def test_a_warm_up_is_enough_for_a_capture(monkeypatch):
    """Rule: after it a capture compiles and loads nothing, and pins what its graph will launch."""
    monkeypatch.setattr(caches, "_pinned", [])
    with stubbed() as driver, monkeypatch.context() as captured:
        sk.warm_up([1, 1, 16, 27], ops=["dct2"])
        captured.setattr(torch.cuda, "is_initialized", lambda: True)
        captured.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        captured.setattr(launch, "_build", lambda *_: pytest.fail("compiled in a capture"))
        sk.dct2(torch.zeros(1, 1, 16, 27))
        assert len(driver.grids) == 1
        (entry,) = caches._pinned
        assert isinstance(entry.value, launch.Loaded)


def test_a_rehearsal_swallows_no_launch_of_another_thread():
    """Rule: recording belongs to its context. What another thread calls meanwhile is launched."""
    with stubbed() as driver:
        with launch.recording() as recorded:

            def work():
                with sk.use_backend("triton"):
                    sk.dct2(torch.zeros(1, 1, 16, 16))

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            sk.dct2(torch.zeros(1, 1, 16, 16))
        assert len(recorded) == 1 and len(driver.grids) == 1
        sk.dct2(torch.zeros(1, 1, 16, 16))
        assert len(driver.grids) == 2


@pytest.mark.parametrize(
    "op", ["corrupt", "momentum_step", "spectral_mix", "soft_score_loss", "spectral_loss"]
)
@pytest.mark.parametrize("batch", [2, 64])
def test_all_but_coefficients_is_known_to_be_aligned(op, batch):
    """Rule: images, tables and scratch are read as whole vectors, which the compiler has to be told: of a
    call whose coefficients are numbers, every address is divisible by 16. (Scratch has two axes for that.)"""
    x = torch.zeros(batch, 3, 192, 192)
    step = {"blur_std_t": 2.0, "blur_std_s": 1.0, "noise_std_t": 2.0, "noise_std_s": 1.0}
    calls = {
        "corrupt": lambda: sk.corrupt(x, 1.0, 1.0, key=sk.NoiseKey(0)),
        "momentum_step": lambda: sk.momentum_step(x, x, **step, key=sk.NoiseKey(0)),
        "spectral_mix": lambda: sk.spectral_mix([x], [x[:1]]),
        "soft_score_loss": lambda: sk.soft_score_loss(x, x, 1.0),
        "spectral_loss": lambda: sk.spectral_loss(x, x, x[0, 0]),
    }
    with stubbed(), launch.recording() as recorded:
        calls[op]()
    pointers = {kind for r in recorded for kind in r.kinds if kind.startswith("*")}
    assert {kind.rstrip("!") for kind in pointers} == {"*fp32", "*fp16"}
    assert all(kind.endswith("!") for kind in pointers)
