# SPDX-License-Identifier: Apache-2.0
"""The experiments: their plan, the exact denoiser, that nothing is done twice, and what the pages show."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks.quality import measure, report
from benchmarks.quality.mixture import COMPONENTS, Mixture
from benchmarks.quality.plan import EXPERIMENTS, IMAGES, MIXTURE, NETWORKS, Curve, Experiment, Network
from softdiff_kernels import dct2
from softdiff_kernels.cli import main
from softdiff_kernels.diffusion import SAMPLERS, SPACINGS, BlurCorruption
from softdiff_kernels.evaluation import load_classifier, train_classifier
from softdiff_kernels.training.presets import PRESETS

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "mnist-cpu"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_curve_has_its_own_lines_and_a_planned_network(name: str) -> None:
    """Rule: lines are found again by what identifies them, so no two drawings of an experiment share it; two
    curves of one label could not be told apart in a plot."""
    experiment = EXPERIMENTS[name]
    per_training = list(experiment.drawings(experiment.trainings[0]))
    assert len({(n, curve.name, k) for n, curve, k in per_training}) == len(per_training)
    assert all(curve.network in {*NETWORKS, MIXTURE} for curve in experiment.curves)
    labels = [report.label(curve, experiment) for curve in experiment.curves]
    assert len(set(labels)) == len(labels)


def test_no_two_curves_share_a_picture() -> None:
    """Rule: one file for each curve and number of evaluations, over all experiments."""
    curves = {curve.name: curve for experiment in EXPERIMENTS.values() for curve in experiment.curves}
    names = [measure.grid_name(curve, n) for curve in curves.values() for n in curve.evaluations]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_flags_of_every_network_are_accepted(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: `softdiff train` takes the flags of a planned network, and its samplers' options exist."""
    assert main(["train", "--data", "mnist.npz", "--dry-run", *NETWORKS[network].flags]) == 0
    capsys.readouterr()
    curves = [c for e in EXPERIMENTS.values() for c in e.curves if c.network == network]
    assert curves and all(c.sampler in SAMPLERS and c.spacing in SPACINGS for c in curves)


def test_the_mixture_denoises_exactly() -> None:
    """Rule: C_t x0_hat = x_t + s_t^2 grad log p(x_t) (Tweedie), with the density written as a mixture of
    normal distributions over DCT frequencies, whose gradient torch takes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3 * COMPONENTS, 1, 6, 5), generator=generator, dtype=torch.uint8)
    corruption = BlurCorruption.paper((6, 5))
    mixture = Mixture(pixels, corruption)
    for t in (0.05, 0.4, 1.0):
        gain, noise = corruption.gain(t).flatten(1), float(corruption.noise(t))
        x_t = torch.randn(4, 1, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
        spread = (gain.square() * mixture.variances + noise**2).sqrt()
        components = torch.distributions.Normal(gain * mixture.means, spread)
        density = components.log_prob(dct2(x_t).flatten(1)[:, None]).sum(2) + mixture.share.log()
        (score,) = torch.autograd.grad(density.logsumexp(1).sum(), x_t)
        x0_hat = mixture(x_t.detach(), torch.full((4,), t))
        seen = corruption.gain(t) * dct2(x0_hat)
        assert torch.allclose(seen, dct2(x_t.detach() + noise**2 * score), atol=1e-6)


def test_exact_samples_have_the_mixtures_mean_and_variance() -> None:
    """Rule: over many draws, each frequency has the mean and variance of the mixture, to 5 standard errors;
    two uses of a stream are different images."""
    pixels = torch.randint(0, 256, (2 * COMPONENTS, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    mixture = Mixture(pixels.to(torch.uint8), BlurCorruption.paper((4, 4)))
    n = 20_000
    drawn = dct2(mixture.draw(1, torch.arange(n)).double()).flatten(1)
    mean = mixture.share @ mixture.means
    variance = mixture.share @ (mixture.variances + mixture.means.square()) - mean.square()
    assert bool(((drawn.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all())
    assert bool(((drawn.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / n) * 2).all())
    assert not torch.equal(mixture.draw(1, torch.arange(3)), mixture.draw(2, torch.arange(3)))


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: an experiment that was stopped continues: no second training, and no line twice; another
    experiment with the same curve finds its lines, too. A run of other options is refused."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (260, 12, 12), dtype=np.uint8), np.arange(260) % 2
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    out = tmp_path / "out"
    out.mkdir()
    pixels = torch.from_numpy(images)[:, None]
    train_classifier(pixels, torch.from_numpy(labels), epochs=1).save(out / measure.CLASSIFIER)
    flags = ("--width", "8", "--blocks", "1", "--batch", "4", "--schedule", "linear", "--warmup", "1")
    curve = Curve("tiny", "momentum", (1, 2))
    monkeypatch.setitem(NETWORKS, "tiny", Network("tiny", flags, 2))
    for name in ("one", "two"):
        monkeypatch.setitem(EXPERIMENTS, name, Experiment(name, [curve], (0, 1), 80, (2,)))
    trained: list[Any] = []
    softdiff = measure._softdiff
    monkeypatch.setattr(measure, "_softdiff", lambda *argv: (trained.append(argv), softdiff(*argv)))

    def run(name: str, training: int) -> int:
        lab = measure.Lab(str(tmp_path / "train.npz"), str(tmp_path / "test.npz"), out)
        lab.run(name, training, 2)
        return len(measure.read(out))

    # Three floors; of the first training 1 evaluation once and 2 evaluations by three samplings.
    assert run("one", 0) == 3 + 1 + 3 and len(trained) == 1
    assert run("one", 0) == run("two", 0) == 7 and len(trained) == 1
    assert run("one", 1) == 7 + 2 and len(trained) == 2
    # Weights of other options are not taken for those of the plan.
    monkeypatch.setitem(NETWORKS, "tiny", Network("tiny", (*flags[:-1], "2"), 2))
    monkeypatch.setitem(EXPERIMENTS, "one", Experiment("one", [Curve("tiny", "ddim", (1,))], (0, 1), 80))
    with pytest.raises(SystemExit, match="softdiff train failed"):
        run("one", 0)
    assert len(measure.read(out)) == 9
    # Nor weights trained anew for those whose samples are there, nor another classifier.
    monkeypatch.setitem(NETWORKS, "tiny", Network("tiny", flags, 2))
    lines = (out / measure.LINES).read_text()
    for what in ("weights", "classifier"):
        changed = [json.dumps({**line, what: "0"} if what in line else line) for line in measure.read(out)]
        (out / measure.LINES).write_text("\n".join(changed) + "\n")
        with pytest.raises(SystemExit, match=f"by the same {what}, got 0 and"):
            run("one", 0)
        (out / measure.LINES).write_text(lines)
    monkeypatch.setitem(EXPERIMENTS, "one", EXPERIMENTS["two"])
    text = report.report(out, tmp_path, ["one"])
    assert "80 images each" in text and (tmp_path / "distances-one.png").exists()


def test_distances_that_do_not_compare_share_no_table() -> None:
    """Rule: one classifier for a table, and one digest of weights for the samples of a training; other
    trainings have other weights, and what is real has none."""
    real = {"training": 0, "classifier": "a"}
    drawn = {**real, "network": "plain", "weights": "1"}
    measure.check_together([real, drawn, {**drawn, "training": 1, "weights": "2"}, drawn])
    for other, message in (
        ({"classifier": "b"}, "by the same classifier, got a and b"),
        ({"weights": "2"}, "1 and 2"),
    ):
        with pytest.raises(SystemExit, match=message):
            measure.check_together([real, drawn, {**drawn, **other}])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_pages_show_what_the_lines_say(name: str) -> None:
    """Rule: every experiment has committed lines, and its table in the documentation is the one that `report`
    prints from them, to the digit."""
    pages = [(REPOSITORY / "docs" / f"{page}.md").read_text() for page in ("experiments", "corruptions")]
    table = report.table(EXPERIMENTS[name], report.distances_of(RESULTS, EXPERIMENTS[name]))
    assert any(table in page for page in pages), table


def test_the_lines_can_be_added_to() -> None:
    """Rule: the classifier by which the networks were measured is committed beside their lines."""
    described = load_classifier(RESULTS / measure.CLASSIFIER).describe()
    assert {x["classifier"] for x in measure.read(RESULTS) if x["images"] == IMAGES} == {described}


def test_what_a_preset_calls_measured_is_an_experiment_with_results() -> None:
    """Rule: a value marked `measured: E1` has lines of E1 among the results, and a heading on the page."""
    page = (REPOSITORY / "docs" / "experiments.md").read_text()
    sources = {setting.source for preset in PRESETS.values() for setting in preset.values()}
    names = [source.removeprefix("measured: ") for source in sources if source.startswith("measured: ")]
    assert names
    for name in names:
        assert report.has_results(EXPERIMENTS[name], report.distances_of(RESULTS, EXPERIMENTS[name])), name
        assert f"({name})" in page, name
