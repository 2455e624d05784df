# SPDX-License-Identifier: Apache-2.0
"""SoftDiffusionScheduler: what diffusers expects of every scheduler, and the samplers' own answers."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

import softdiff_kernels as sk
from softdiff_kernels import diffusion
from softdiff_kernels.diffusion import (
    SAMPLERS,
    BlurCorruption,
    Corruption,
    LinearCorruption,
    MaskCorruption,
    SoftDenoiser,
    SpectralCorruption,
    power_spectrum,
    time_steps,
)
from softdiff_kernels.integrations import diffusers as module
from softdiff_kernels.integrations.diffusers import (
    PREDICTION_TYPES,
    RULES,
    SoftDiffusionScheduler,
    SoftPrior,
    SoftUNet2DModel,
)

SIZE = (8, 8)
STEPS = 6
# Many tests step from images that no prior drew: what a step computes does not depend on that.
pytestmark = pytest.mark.filterwarnings("ignore:step. expected x_1")


def spectrum() -> diffusion.PowerSpectrum:
    return power_spectrum([torch.rand(16, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1])


CORRUPTIONS: dict[str, Callable[[], Corruption]] = {
    "soft": lambda: BlurCorruption.paper(SIZE),
    "blurring": lambda: BlurCorruption.blurring_diffusion(SIZE),
    "noise": lambda: BlurCorruption.noise_only(SIZE, noise_std_max=20.0),
    "ihdm": lambda: BlurCorruption.ihdm(SIZE),
    "mask": lambda: MaskCorruption(SIZE),
    "motion": lambda: LinearCorruption.motion_blur(SIZE, length=3.0),
    "spectral": lambda: SpectralCorruption.equal_snr(spectrum()),
}


def images(seed: int = 0, count: int = 4) -> Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def network(x: Tensor, k: Tensor | float) -> Tensor:
    """Stands for a network of timesteps: nonlinear in x, and it depends on k."""
    return torch.tanh(x) * (0.2 + 0.0005 * k) - 0.3 * x


def sampled(scheduler: SoftDiffusionScheduler, x: Tensor, generator: Any = None) -> Tensor:
    """The loop of diffusers' pipelines."""
    for k in scheduler.timesteps:
        x = scheduler.step(network(x, k), k, x, generator=generator).prev_sample
    return x


def step(scheduler: SoftDiffusionScheduler, k: float, seed: int = 0, **kw: Any) -> Any:
    x = images()
    return scheduler.step(0.1 * x, k, x, generator=torch.Generator().manual_seed(seed), **kw)


REFUSED = {("tacos", "noise"), ("tacos", "blurring"), ("tacos", "spectral"), ("ancestral", "motion")}
"""What makes no sense: TACoS keeps the noise of t = 1, and the ancestral rule needs gains."""


# What diffusers' common tests of schedulers require.


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [None, 50])
def test_a_saved_scheduler_steps_as_the_one_it_was_made_from(
    rule: str, steps: int | None, tmp_path: Path
) -> None:
    """Rule: from_pretrained of save_pretrained has an equal configuration and equal steps, at the first
    timesteps too, whether or not set_timesteps was called."""
    scheduler = SoftDiffusionScheduler(image_size=SIZE, rule=rule)
    scheduler.save_pretrained(tmp_path)
    again = SoftDiffusionScheduler.from_pretrained(tmp_path)
    config = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    assert config == dict(again.config)
    for k in (0, 1):
        fresh = [copy.deepcopy(each) for each in (scheduler, again)]
        if steps is not None:
            for each in fresh:
                each.set_timesteps(steps)
        first, second = (step(each, k).prev_sample for each in fresh)
        assert torch.equal(first, second) and first.shape == (4, 3, *SIZE)
    # On one object, out of order: 0 and then 1.
    assert step(scheduler, 0).prev_sample.shape == step(scheduler, 1).prev_sample.shape


@pytest.mark.parametrize("rule", RULES)
def test_a_tuple_holds_what_the_dictionary_does(rule: str) -> None:
    """Rule: return_dict=False returns the same two tensors."""
    scheduler = SoftDiffusionScheduler(image_size=SIZE, rule=rule)
    scheduler.set_timesteps(50)
    as_dict = step(scheduler, 0)
    scheduler.set_timesteps(50)
    as_tuple = step(scheduler, 0, return_dict=False)
    assert isinstance(as_tuple, tuple) and list(as_dict) == ["prev_sample", "pred_original_sample"]
    assert all(torch.equal(a, b) for a, b in zip(as_tuple, as_dict.values(), strict=True))


def test_the_public_parts_of_a_scheduler() -> None:
    """Rule: everything by which pipelines and training scripts use a scheduler is there."""
    scheduler = SoftDiffusionScheduler(image_size=SIZE)
    x = images()
    assert scheduler.init_noise_sigma == pytest.approx(0.1) and scheduler.order == 1
    assert torch.equal(scheduler.scale_model_input(x, 0.0), x)
    assert len(scheduler) == scheduler.config.num_train_timesteps == 1000
    assert scheduler.timesteps.tolist() == list(range(999, -1, -1))
    assert scheduler.compatibles == [SoftDiffusionScheduler]
    again = SoftDiffusionScheduler.from_config(scheduler.config)
    assert {name: again.config[name] for name in scheduler.config} == dict(scheduler.config)
    assert "kwargs" not in inspect.signature(SoftDiffusionScheduler.__init__).parameters
    assert not SoftDiffusionScheduler._deprecated_kwargs
    assert callable(scheduler.push_to_hub)
    scheduler.own = 5
    assert scheduler.own == 5
    with pytest.raises(AttributeError):
        _ = scheduler.does_not_exist
    json.loads(scheduler.to_json_string())


def test_a_configuration_keeps_what_was_overridden() -> None:
    """Rule: from_config takes changes, which stay through another from_config; what was a default is made
    anew for the new corruption."""
    first = SoftDiffusionScheduler(image_size=SIZE, num_train_timesteps=500)
    changed = SoftDiffusionScheduler.from_config(first.config, rule="ddim", rule_options={"eta": 0.5})
    twice = SoftDiffusionScheduler.from_config(changed.config)
    assert (twice.rule, twice.config.rule_options, len(twice)) == ("ddim", {"eta": 0.5}, 500)
    other = SoftDiffusionScheduler.from_config(first.config, corruption=CORRUPTIONS["noise"]())
    assert (first.rule, other.rule) == ("momentum", "multistep")


@pytest.mark.parametrize("k", [torch.tensor([3, 0, 999, 500]), torch.tensor([7.5]), torch.tensor(999), 12])
def test_add_noise_is_the_corruption(k: Any) -> None:
    """Rule: add_noise is C_t x_0 + s_t n at t = (k + 1) / T, for a batch of timesteps or one."""
    scheduler = SoftDiffusionScheduler(image_size=SIZE)
    x0, noise = images(), torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    t = ((torch.as_tensor(k) + 1.0) / 1000).reshape(-1).expand(4)
    want = BlurCorruption.paper(SIZE).corrupt(x0.double(), t.double(), noise=noise.double())
    assert isinstance(want, Tensor)
    # Of float32 images: 10 roundings of values under 2, and t in float32, over which x_t changes by 60 per t.
    assert (scheduler.add_noise(x0, noise, k) - want).abs().max() < 1e-5
    half = scheduler.add_noise(x0.bfloat16(), noise, k)
    assert half.dtype == torch.bfloat16 and (half.double() - want).abs().max() < 0.05


# The samplers' answers.


def test_every_sampler_has_its_rule() -> None:
    assert list(RULES) == list(SAMPLERS)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_the_loop_of_diffusers_gives_the_samplers_images(rule: str, corruption: str) -> None:
    """Rule: stepping through `timesteps` with a key equals the sampler of `diffusion`, bit for bit but for t
    of the network, which float32 timesteps round by 6e-8."""
    process = CORRUPTIONS[corruption]()
    if (rule, corruption) in REFUSED:
        with pytest.raises(ValueError, match="expected"):
            SoftDiffusionScheduler(corruption=process, rule=rule)
        return
    scheduler = SoftDiffusionScheduler(corruption=process, rule=rule)
    scheduler = SoftDiffusionScheduler.from_config(json.loads(json.dumps(scheduler.config)))
    scheduler.set_timesteps(STEPS)
    assert len(scheduler.timesteps) == (2 * STEPS - 1 if rule == "heun" else STEPS)
    key = sk.NoiseKey(5, stream=10)
    x = process.corrupt(images(), 1.0, key=key)
    assert isinstance(x, Tensor)
    inner: Any = lambda x, t: network(x, 1000.0 * t.reshape(-1, 1, 1, 1) - 1.0)  # noqa: E731
    denoiser = SoftDenoiser(inner, process, weight="uniform")
    want = SAMPLERS[rule](denoiser, x, time_steps(STEPS), disable=True, key=key)
    got = sampled(scheduler, x, key)
    assert (got - want).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))
    assert not torch.equal(got, x)


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_what_the_network_predicts(prediction: str) -> None:
    """Rule: of a network that knows x_0, pred_original_sample is x_0 whatever it predicts; and the loss is
    0, and over 0 for another output."""
    process = CORRUPTIONS["noise"]()
    scheduler = SoftDiffusionScheduler(corruption=process, prediction_type=prediction, data_std=0.6)
    x0, noise, k = images(), torch.randn(4, 3, *SIZE), torch.full((4,), 500)
    x_t = scheduler.add_noise(x0, noise, k)
    sigma = process.noise(0.501).item()
    right = {
        "residual": x0 - x_t,
        "sample": x0,
        "epsilon": noise,
        "edm": x0 - 0.36 / (sigma**2 + 0.36) * x_t,
    }[prediction]
    out = scheduler.step(right, 500, x_t)
    assert (out.pred_original_sample - x0).abs().max() < 1e-4
    assert (
        float(scheduler.loss(right, x0, noise, k)) < 1e-8 < float(scheduler.loss(0.5 * right, x0, noise, k))
    )
    each = scheduler.loss(0.5 * right, x0, noise, k, reduction="none")
    assert each.shape == (4,) and torch.allclose(each.mean(), scheduler.loss(0.5 * right, x0, noise, k))


def test_the_loss_is_the_denoisers() -> None:
    """Rule: for the same x_0, noise and t, the loss is that of SoftDenoiser, over the number of elements."""
    scheduler = SoftDiffusionScheduler(image_size=SIZE)
    x0, noise, k = images(), torch.randn(4, 3, *SIZE), torch.tensor([3, 100, 500, 999])
    inner: Any = lambda x, t: network(x, 1.0)  # noqa: E731
    denoiser = SoftDenoiser(inner, scheduler.corruption)
    want = denoiser.loss(x0, (k + 1) / 1000, noise=noise, reduction="mean") / (3 * 64)
    out = network(scheduler.add_noise(x0, noise, k), 1.0).requires_grad_()
    got = scheduler.loss(out, x0, noise, k)
    assert torch.allclose(got, want, rtol=1e-5)
    got.backward()
    assert out.grad is not None and out.grad.abs().sum() > 0


# Where noise comes from.


@pytest.mark.parametrize("rule", ["naive", "momentum", "ancestral", "ihdm", "langevin"])
def test_a_generator_decides_the_noise(rule: str) -> None:
    """Rule: the same generators give the same images; others give others; and with one generator for each
    image, an image does not depend on the rest of its batch."""
    scheduler = SoftDiffusionScheduler(image_size=SIZE, rule=rule)

    def draw(seeds: list[int], x: Tensor) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        scheduler.set_timesteps(STEPS)
        return sampled(scheduler, x, generators if len(seeds) > 1 else generators[0])

    x = images()
    one, again, other = draw([3], x), draw([3], x), draw([4], x)
    assert torch.equal(one, again) and not torch.equal(one, other)
    listed = draw([1, 2, 3, 4], x)
    assert torch.allclose(draw([3, 2], x[[2, 1]]), listed[[2, 1]], atol=1e-6)
    torch.manual_seed(0)
    scheduler.set_timesteps(STEPS)
    first = sampled(scheduler, x)
    torch.manual_seed(0)
    scheduler.set_timesteps(STEPS)
    assert torch.equal(sampled(scheduler, x), first)
    with pytest.raises(ValueError, match="one for each of the 4 images, got 3"):
        scheduler.set_timesteps(STEPS)
        sampled(scheduler, x, [torch.Generator() for _ in range(3)])


def test_noise_of_a_generator_is_white() -> None:
    """Rule: the noise that a step adds has mean 0 and the step's deviation. IHDM with delta 1 returns
    C_s x0_hat + n; over 12 288 elements the deviation is known within 0.03 (4.6 of its own)."""
    scheduler = SoftDiffusionScheduler(image_size=SIZE, rule="ihdm", rule_options={"delta": 1.0})
    x = torch.zeros(64, 3, *SIZE)
    noise = scheduler.step(x, 500, x, generator=torch.Generator().manual_seed(0)).prev_sample
    assert abs(float(noise.std()) - 1) < 0.03 and abs(float(noise.mean())) < 0.04
    # Neighbours in the batch share nothing: a correlation of 192 numbers is under 5 / sqrt(192).
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(64)
    assert float(correlation.abs().max()) < 0.36


# State, and the order of the calls.


def test_multistep_never_uses_another_trajectorys_estimate() -> None:
    """Rule: two trajectories in turns through one scheduler get steps of first order, and a warning; one
    alone gets second order; a trajectory begun anew forgets the one before."""
    scheduler = SoftDiffusionScheduler(image_size=SIZE, rule="multistep")
    ddim = SoftDiffusionScheduler(image_size=SIZE, rule="ddim")
    first, second = images(1), images(2)
    for each in (scheduler, ddim):
        each.set_timesteps(STEPS)
    alone = sampled(scheduler, first)
    assert torch.equal(sampled(scheduler, first), alone)  # without set_timesteps in between, too
    plain = sampled(ddim, first)
    assert (alone - plain).abs().max() > 1e-4
    scheduler.set_timesteps(STEPS)
    a, b = first, second
    with pytest.warns(UserWarning, match="first order"):
        for k in scheduler.timesteps:
            a = scheduler.step(network(a, k), k, a).prev_sample
            b = scheduler.step(network(b, k), k, b).prev_sample
    assert torch.equal(a, plain)


def test_a_start_that_is_no_image_of_the_corruption() -> None:
    """Rule: white noise of deviation 1, from which DDPMPipeline begins, gets a warning; x_1 does not, even of
    one small image."""
    for name in ("soft", "noise", "mask", "spectral"):
        process = CORRUPTIONS[name]()
        scheduler = SoftDiffusionScheduler(corruption=process)
        scheduler.set_timesteps(STEPS)
        x = torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))
        if name != "spectral":  # whose x_1 is white noise of deviation 1 nearly
            with pytest.warns(UserWarning, match="draw x_1 from a prior"):
                scheduler.step(network(x, 999), 999, x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for seed in range(4):
                x = process.corrupt(images(seed, 1), 1.0, key=sk.NoiseKey(seed))
                scheduler.step(network(x, 999), 999, x)


def test_push_to_hub_uploads_what_save_pretrained_writes() -> None:
    """Rule: a scheduler and a prior are pushed as the files that from_pretrained reads."""
    pushed: list[list[str]] = []

    def upload(self: Any, folder: Any, *args: Any, **kw: Any) -> None:
        pushed.append(sorted(path.name for path in Path(folder).rglob("*") if path.is_file()))

    scheduler = SoftDiffusionScheduler(image_size=SIZE)
    prior = SoftPrior(diffusion.PlainGaussianPrior(SIZE, 3, 1.0))
    hub = "diffusers.utils.hub_utils"
    with (
        patch(f"{hub}.PushToHubMixin._upload_folder", upload),
        patch(f"{hub}.create_repo"),
        patch(f"{hub}.load_or_create_model_card"),
        patch(f"{hub}.populate_model_card"),
    ):
        scheduler.push_to_hub("someone/scheduler")
        prior.push_to_hub("someone/prior")
    assert pushed == [["scheduler_config.json"], ["prior.safetensors"]]


def test_heun_refuses_another_sample_in_the_middle_of_a_step() -> None:
    scheduler = SoftDiffusionScheduler(image_size=SIZE, rule="heun")
    scheduler.set_timesteps(STEPS)
    x, k = images(), scheduler.timesteps
    scheduler.step(network(x, k[0]), k[0], x)
    with pytest.raises(ValueError, match="middle of a step"):
        scheduler.step(network(x, k[1]), k[1], x)


def test_a_step_begins_anywhere() -> None:
    """Rule: from a timestep between two of `timesteps` the step leads to the next smaller one; the answer is
    the rule's own."""
    scheduler = SoftDiffusionScheduler(image_size=SIZE, rule="ddim")
    scheduler.set_timesteps(4)
    x = images()
    got = scheduler.step(0.1 * x, 600, x).prev_sample
    process = scheduler.corruption
    want = diffusion.DDIM().step(process, x, 1.1 * x, 0.601, 0.5, None)
    assert torch.allclose(got, want, atol=1e-6)


def test_custom_timesteps_and_spacings() -> None:
    """Rule: given timesteps are used as they are, and spacings are those of time_steps."""
    scheduler = SoftDiffusionScheduler(image_size=SIZE, rule="ddim")
    scheduler.set_timesteps(timesteps=[999, 400, 10])
    assert scheduler.timesteps.tolist() == [999, 400, 10] and scheduler.num_inference_steps == 3
    x = images()
    end = sampled(scheduler, x)
    assert torch.isfinite(end).all()
    process = CORRUPTIONS["noise"]()
    spaced = SoftDiffusionScheduler(corruption=process, spacing="karras")
    spaced.set_timesteps(5)
    want = 1000 * time_steps(5, "karras", corruption=process)[:-1] - 1
    assert torch.allclose(spaced.timesteps.double(), want, atol=1e-4)


def test_auto_takes_the_best_sampler_for_the_steps() -> None:
    scheduler = SoftDiffusionScheduler(image_size=SIZE, rule="auto")
    best = {}
    for steps in (10, 64):
        scheduler.set_timesteps(steps)
        best[steps] = scheduler.rule
    assert best == {10: "multistep", 64: "momentum"}


# Bad input.


def wrong(**config: Any) -> Callable[[], Any]:
    return lambda: SoftDiffusionScheduler(**{"image_size": SIZE, **config})


def used(use: Callable[[SoftDiffusionScheduler], Any], **config: Any) -> Callable[[], Any]:
    return lambda: use(SoftDiffusionScheduler(image_size=SIZE, **config))


def use_rounded(scheduler: SoftDiffusionScheduler) -> None:
    scheduler.set_timesteps(64)
    x = images()
    scheduler.step(x, round(float(scheduler.timesteps[1])), x)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: SoftDiffusionScheduler(), "image_size as"),
        (
            wrong(corruption=BlurCorruption.paper((16, 16))),
            r"that of the corruption, \[16, 16\], got \[8, 8\]",
        ),
        (wrong(format_version=2), "later softdiff_kernels; upgrade"),
        (wrong(rule="euler"), "one of 'naive', 'momentum'"),
        (wrong(rule_options={"eta": 1.0}), "rule_options of 'momentum'"),
        (wrong(rule="auto", rule_options={"eta": 1.0}), "no rule_options"),
        (wrong(prediction_type="v_prediction"), "prediction_type as one of 'residual'"),
        (wrong(prediction_type="epsilon"), 'for the prediction "noise"'),
        (wrong(spacing="w2"), "spectrum"),
        (wrong(corruption={"format": "softdiff-corruption", "kind": "other"}), "import the module"),
        (
            wrong(corruption=LinearCorruption(lambda x, t: 0.5 * x, SIZE)),
            "a class that files can name, got a function",
        ),
        (used(lambda s: s.set_timesteps()), "either num_inference_steps or timesteps"),
        (used(lambda s: s.set_timesteps(5, timesteps=[1])), "either num_inference_steps or timesteps"),
        (used(lambda s: s.set_timesteps(1001)), "at most num_train_timesteps = 1000"),
        (used(lambda s: s.set_timesteps(timesteps=[5, 5])), "falling"),
        (used(lambda s: s.set_timesteps(timesteps=[1000, 5])), "from 999 at most"),
        (used(lambda s: s.step(images(), 1000, images())), "at most 999"),
        (used(lambda s: s.step(images(), torch.tensor([1, 2]), images())), "one number"),
        (used(use_rounded), "without rounding"),
        (used(lambda s: s.step(torch.zeros(1, 3, 9, 9), 5, torch.zeros(1, 3, 9, 9))), "images of 8 x 8"),
        (used(lambda s: s.add_noise(images(), images(), torch.tensor([1000]))), "at most 999"),
        (
            used(lambda s: s.add_noise(torch.zeros(1, 3, 9, 9), torch.zeros(1, 3, 9, 9), torch.tensor([1]))),
            "images of 8 x 8",
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(use: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        use()


def test_a_later_or_another_configuration_on_disk_is_refused(tmp_path: Path) -> None:
    """Rule: a file of a later version, or with a corruption of another size, is not read as if it were this
    one's."""
    SoftDiffusionScheduler(corruption=BlurCorruption.paper(SIZE), image_size=SIZE).save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    config = json.loads(file.read_text())
    for change, message in (({"format_version": 2}, "upgrade"), ({"image_size": [9, 9]}, "got \\[9, 9\\]")):
        file.write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            SoftDiffusionScheduler.from_pretrained(tmp_path)


def test_the_examples_in_docstrings() -> None:
    """Rule: the examples of the public classes give what they say."""
    import doctest

    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    classes = (SoftDiffusionScheduler, SoftUNet2DModel, SoftPrior, module.SoftDiffusionPipeline)
    for each in classes:
        tests = [
            t for t in doctest.DocTestFinder(recurse=False).find(each, each.__name__, module) if t.examples
        ]
        assert tests, each
        for test in tests:
            runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
