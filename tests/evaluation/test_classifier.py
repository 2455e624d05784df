# SPDX-License-Identifier: Apache-2.0
"""The classifier that distances are taken on: what it learns, repeats, keeps and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from labelled_bars import bars
from torch import Tensor

from softdiff_kernels.errors import UserError
from softdiff_kernels.evaluation import Classifier, classifier_frechet, load_classifier, train_classifier
from softdiff_kernels.evaluation.classifier import least_accuracy
from softdiff_kernels.training.checkpoint import Checkpoint, prune


def quiet(pixels: Tensor, labels: Tensor, **options: Any) -> Classifier:
    return train_classifier(pixels, labels, **{"epochs": 6, "say": lambda _: None, **options})


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return quiet(*bars(600))


def test_it_learns_and_says_so(trained: Classifier) -> None:
    said: list[str] = []
    names = ["none", "across", "down", "both"]
    classifier = quiet(*bars(600), say=said.append, name="bars", classes=names)
    # Four classes that differ plainly; the accuracy is of images that it was not trained on.
    assert classifier.accuracy >= 0.9
    fresh, labels = bars(300, seed=9)
    assert (classifier.predict(fresh) == labels).float().mean() >= 0.9
    assert "540 images of bars, 4 classes" in said[0] and "of 60 images" in said[-1]
    assert classifier.classes == names and trained.classes == ["0", "1", "2", "3"]


def test_features_have_unit_variance_and_none_is_constant(trained: Classifier) -> None:
    features = trained.features(bars(600)[0])
    assert features.shape == (600, 64) and features.dtype == torch.float32
    # The distance's unit is a feature's mean variance over the training images.
    assert features.var(dim=0).mean().item() == pytest.approx(1, rel=0.1)
    assert (features.std(dim=0) > 1e-3).all()
    # An image's features do not depend on its company.
    assert torch.allclose(trained.features(bars(600)[0], batch=7), features, atol=1e-4)


def test_the_seed_rules_all_and_the_global_generator_is_left_alone() -> None:
    pixels, labels = bars(220)
    before = torch.get_rng_state()
    first, again, other = (quiet(pixels, labels, epochs=1, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.digest() == again.digest() != other.digest()
    torch.manual_seed(12345)
    assert quiet(pixels, labels, epochs=1, seed=3).digest() == first.digest()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14), (4, 33, 20), (2, 64, 64)])
def test_images_of_any_size_and_channels(shape: tuple[int, int, int]) -> None:
    pixels, labels = bars(200, shape=shape)
    features = quiet(pixels, labels, epochs=1).features(pixels[:5])
    assert features.shape == (5, 64) and torch.isfinite(features).all()


def test_the_distance_orders_images_by_how_wrong_they_are(trained: Classifier) -> None:
    one, two = bars(500, seed=1)[0], bars(500, seed=2)[0]
    noise = torch.randint(0, 60, one.shape, generator=torch.Generator().manual_seed(0))
    noisy = (one + noise).clamp(max=255).to(torch.uint8)
    near, far = classifier_frechet(trained, one, two), classifier_frechet(trained, noisy, two)
    one_class = one[bars(500, seed=1)[1] == 1]
    # The same images: 0. Others of one distribution: little. Noisier ones, and ones without variety: more.
    assert classifier_frechet(trained, one, one) < 1e-8
    assert near < far / 3 and near < classifier_frechet(trained, one_class, two) / 3


def test_what_is_saved_comes_back(trained: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "bars.safetensors"
    trained.save(path)
    loaded = load_classifier(path)
    pixels = bars(40)[0]
    assert torch.equal(loaded.features(pixels), trained.features(pixels))
    for name in ("classes", "shape", "accuracy", "chance", "data", "data_digest", "seed", "epochs", "scale"):
        assert getattr(loaded, name) == getattr(trained, name), name
    assert loaded.digest() == trained.digest()
    said = loaded.describe()
    assert "bars.safetensors" in said and loaded.digest() in said and "% of held-out images right" in said


def test_a_run_that_tidies_up_leaves_a_classifier_alone(trained: Classifier, tmp_path: Path) -> None:
    for step in (1, 2):
        trained.save(tmp_path / f"classifier-{step:08d}.safetensors")
    prune(tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_files_of_another_kind_are_refused(trained: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file \(expected a classifier file of softdiff\)"):
        load_classifier(tmp_path / "none.safetensors")
    weights = tmp_path / "weights.safetensors"
    Checkpoint("weights", {}, {"model.a": torch.zeros(2)}).save(weights)
    with pytest.raises(UserError, match="expected a classifier file of softdiff, got a weights file"):
        load_classifier(weights)
    partial = Checkpoint("classifier", {"shape": [1, 8, 8], "classes": ["0", "1"]}, {})
    partial.save(tmp_path / "partial.safetensors")
    with pytest.raises(UserError, match="its parts do not fit together"):
        load_classifier(tmp_path / "partial.safetensors")
    trained.save(tmp_path / "cut.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(cut.read_bytes()[:-50])
    with pytest.raises(UserError, match="truncated"):
        load_classifier(cut)


def test_images_of_another_shape_are_refused(trained: Classifier) -> None:
    with pytest.raises(UserError, match=r"uint8 images \[N, 1, 8, 8\].*got uint8 \[2, 3, 8, 8\]"):
        trained.features(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"got float32 \[2, 1, 8, 8\]"):
        trained.predict(torch.zeros(2, 1, 8, 8))


def test_data_that_cannot_be_learnt_from_is_refused() -> None:
    pixels, labels = bars(220)
    cases = [
        ((pixels[:50], labels[:50]), "200 or more labelled images, got 50"),
        ((pixels[..., :7], labels), r"8 pixels a side or more, got uint8 \[220, 1, 8, 7\]"),
        ((pixels, labels * 0), "2 classes or more, got only 0"),
        ((pixels, labels[1:]), r"labels \[220\], one for each image, got int64 \[219\]"),
        ((pixels, labels.float()), r"got float32 \[220\]"),
    ]
    for data, said in cases:
        with pytest.raises(UserError, match=said):
            quiet(*data)


def test_a_classifier_that_guesses_is_of_no_use() -> None:
    # Labels drawn apart from the images: nothing that is learnt carries over to the held-out ones.
    pixels = bars(300)[0]
    labels = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(1))
    classifier = quiet(pixels, labels, epochs=1, name="noise")
    with pytest.raises(
        UserError, match=r"noise is right for .*; its features are meaningful from .* \(chance: "
    ):
        classifier_frechet(classifier, pixels, pixels)
    # Three times chance, where that leaves room under 1; half the way from chance to 1 otherwise.
    assert least_accuracy(0.1) == pytest.approx(0.3) and least_accuracy(0.5) == 0.75
