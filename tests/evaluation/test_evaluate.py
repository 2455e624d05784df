# SPDX-License-Identifier: Apache-2.0
"""`softdiff evaluate`: the numbers, what is told beside them, and one line for every mistake."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from labelled_bars import bars
from PIL import Image
from torch import Tensor

from softdiff_kernels.cli import main
from softdiff_kernels.commands.evaluate import EvaluateConfig, described, samples
from softdiff_kernels.errors import UserError
from softdiff_kernels.evaluation import (
    METRICS,
    FeatureStatistics,
    classifier_frechet,
    frechet_distance,
    load_classifier,
    train_classifier,
)

pytest.importorskip("tyro")
DOCS = Path(__file__).parents[2] / "docs"


def archive(path: Path, pixels: Tensor, labels: Tensor | None = None) -> str:
    arrays = {"images": pixels.permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files: a labelled reference, one without labels, samples, a hundred of them, a classifier."""
    folder = tmp_path_factory.mktemp("evaluate")
    pixels, labels = bars(1100)
    others = bars(600, seed=1)[0]
    trained = train_classifier(pixels, labels, epochs=4, say=lambda _: None, name="labelled")
    trained.save(folder / "classifier.safetensors")
    return {
        "labelled": archive(folder / "labelled.npz", pixels, labels),
        "plain": archive(folder / "plain.npz", pixels),
        "samples": archive(folder / "samples.npz", others),
        "few": archive(folder / "few.npz", others[:100]),
        "classifier": str(folder / "classifier.safetensors"),
    }


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["evaluate", *argv]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The sentence of a refusal: exit code 2, one line on stderr after what training told, no number."""
    assert main(["evaluate", *argv]) == 2
    said = capsys.readouterr()
    *progress, last = said.err.splitlines()
    assert last.startswith("softdiff: error: ") and "Traceback" not in said.err and not said.out
    assert not any("error" in line for line in progress)
    return last


def test_the_number_is_the_classifier_distance_with_all_that_it_depends_on(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    argv = ["--images", data["samples"], "--reference", data["plain"], "--classifier", data["classifier"]]
    said = run(capsys, *argv, "--out", str(out))
    (result,) = json.loads(out.read_text())
    trained = load_classifier(data["classifier"])
    # The value is the library's, on the same pixels, up to float32 rounding of the features.
    wanted = classifier_frechet(trained, bars(600, seed=1)[0], bars(1100)[0])
    assert result["value"] == pytest.approx(wanted, rel=1e-6)
    # A reader finds the metric, both counts, the features with digest and accuracy, and the floor.
    assert result["metric"] == "classifier Fréchet distance"
    assert (result["samples"], result["reference"], result["floor_images"]) == (600, 1100, [550, 550])
    assert 0 < result["floor"] < 1
    for text in ("classifier Fréchet distance: ", "600 of", "1100 of", trained.digest(), "% of held-out"):
        assert text in said
    # What nobody recorded is said to be unknown, and this is never called by Inception's name.
    assert "prior unknown" in said and "sampler unknown" in said
    assert "fid" not in said.lower() and "fid" not in out.read_text().lower()
    # The same again, as one line of JSON.
    line = run(capsys, *argv, "--json")
    assert line.count("\n") == 1 and json.loads(line) == result


def test_it_trains_on_the_reference_and_keeps_the_classifier_where_told(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--images", data["samples"], "--reference", data["labelled"], "--json"]
    argv += ["--epochs", "4"]
    first = json.loads(run(capsys, *argv))
    # Nothing is written unasked.
    assert not list(tmp_path.iterdir())
    assert first["held_out_accuracy"] > 0.9
    kept = [*argv, "--classifier", "kept.safetensors"]
    second, third = (json.loads(run(capsys, *kept)) for _ in range(2))
    # Trained again from the same seed, and read back: one classifier, one number.
    assert first["features_digest"] == second["features_digest"] == third["features_digest"]
    assert first["value"] == second["value"] == pytest.approx(third["value"], rel=1e-6)
    # A kept classifier serves its own data alone.
    other = archive(tmp_path / "other.npz", *bars(300, seed=5))
    assert "not on --labelled" in refused(capsys, *kept, "--labelled", other)


def test_a_folder_of_samples_brings_its_record_and_not_its_grid(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, image in enumerate(bars(12, seed=2)[0]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{seed:06d}.png")
    Image.new("L", (90, 90)).save(tmp_path / "grid.png")
    record: dict[str, Any] = {"weights": "w.safetensors", "weights_digest": "ab12", "step": 7}
    record |= {"sampler": "naive", "steps": 9, "seeds": "0-11", "prior": "gaussian-dct", "class": None}
    (tmp_path / "samples.json").write_text(json.dumps(record))
    argv = ["--images", str(tmp_path), "--reference", data["plain"], "--classifier", data["classifier"]]
    said = run(capsys, *argv, "--num", "10")
    # Exactly --num images, the grid is none of them, and too few for a figure is said beside it.
    assert "10 of " in said and "fewer than 500 images" in said
    for text in ("w.safetensors", "step 7", "prior gaussian-dct", "sampler naive", "steps 9", "seeds 0-9"):
        assert text in said
    assert "class " not in said.replace("classifier", "")
    assert "at most the 12 images" in refused(capsys, *argv, "--num", "13")
    # Packed, the same: other pictures are left out there, too.
    whole = run(capsys, *argv, "--num", "12", "--json")
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archived:
        for file in sorted(tmp_path.glob("*.[pj]*")):
            archived.write(file, f"samples/{file.name}")
    argv[1] = str(packed)
    result = json.loads(run(capsys, *argv, "--num", "12", "--json"))
    assert result["samples_digest"] == json.loads(whole)["samples_digest"] and result["sampler"] == "naive"
    # A damaged image is not left out, which would leave other images than the record names.
    content = bytearray(packed.read_bytes())
    content[content.index(b"IDAT", content.index(b"samples/000005.png")) + 8] ^= 255
    packed.write_bytes(content)
    assert "samples/000005.png cannot be unpacked (Bad CRC-32" in refused(capsys, *argv, "--num", "12")
    argv[1] = str(tmp_path)
    # An archive brings its own record, in the order of its seeds; the one beside it may be of others.
    images, seeds = bars(12, seed=2)[0][:, 0].numpy(), np.arange(12)[::-1]
    for more, made in (({"record": np.array(json.dumps(record))}, ("naive", "2-11")), ({}, (None, None))):
        np.savez(tmp_path / "all.npz", arr_0=images, seeds=seeds, **more)
        argv[1] = str(tmp_path / "all.npz")
        result = json.loads(run(capsys, *argv, "--num", "10", "--json"))
        assert (result["sampler"], result["seeds"]) == made
    argv[1] = str(tmp_path)
    # A record that is of other images would be wrong of these.
    Image.new("L", (8, 8)).save(tmp_path / "000012.png")
    assert "000012.png is in only one of the two" in refused(capsys, *argv, "--num", "10")
    (tmp_path / "000012.png").unlink()
    (tmp_path / "000003.png").rename(tmp_path / "003.png")
    assert json.loads(run(capsys, *argv, "--num", "10", "--json"))["samples"] == 10
    (tmp_path / "003.png").unlink()
    assert "000003.png is in only one of the two" in refused(capsys, *argv, "--num", "10")
    (tmp_path / "samples.json").write_text("{")
    assert "samples.json: not readable" in refused(capsys, *argv, "--num", "10")


def test_samples_are_drawn_from_weights(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    folder = tmp_path / "run"
    argv = ["train", "--data", data["few"], "--outdir", str(folder), "--steps", "1", "--width", "8"]
    argv += ["--blocks", "1", "--batch", "4", "--schedule", "paper", "--sample-count", "0", "--no-progress"]
    assert main(argv) == 0
    capsys.readouterr()
    argv = ["--weights", str(folder), "--reference", data["plain"], "--classifier", data["classifier"]]
    argv += ["--steps", "2", "--seeds", "0-19"]
    result = json.loads(run(capsys, *argv, "--num", "6", "--json"))
    made = {name: result[name] for name in ("samples", "sampler", "steps", "seeds", "step")}
    assert made == {"samples": 6, "sampler": "multistep", "steps": 2, "seeds": "0-5", "step": 1}
    assert "gaussian-dct" in result["prior"] and len(result["weights_digest"]) == 32
    # Seed k is the image that `softdiff sample` writes for it: 6 seeds or the first 6 of 20 are the same.
    argv[-1] = "0-5"
    again = json.loads(run(capsys, *argv, "--num", "6", "--json"))
    assert again["samples_digest"] == result["samples_digest"]
    argv[-1] = "0-5"
    # What is drawn has the model's channels and size: the advice is to bring the reference to them.
    colour = archive(tmp_path / "colour.npz", bars(600, shape=(3, 9, 9))[0])
    said = refused(capsys, *argv[:2], "--reference", colour, *argv[4:])
    assert "--channels 1 compares all as grey; --image-size 8 8 brings all to 8 x 8" in said
    assert "--channels: expected 1, which" in refused(capsys, *argv, "--channels", "3")
    # Too few are refused before any is drawn.
    assert "needs 500 images or more on both sides, got 6 (samples). Pass --num 6 to compute it" in refused(
        capsys, *argv
    )
    # A run's own pictures are not its samples.
    argv = ["--images", str(folder), "--reference", data["plain"], "--classifier", data["classifier"]]
    assert "is a run folder: give it as --weights" in refused(capsys, *argv)


def test_mistakes_are_one_line(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(images: str, reference: str, *more: str) -> str:
        return refused(capsys, "--images", images, "--reference", reference, *more)

    kept = ["--classifier", data["classifier"]]
    few, samples, plain = data["few"], data["samples"], data["plain"]
    assert "either --images or --weights, got neither" in refused(capsys, "--reference", plain)
    assert "either --images or --weights, got both" in said(samples, plain, "--weights", "w")
    assert "has no labels" in said(samples, plain)
    assert "got 100 (samples)" in said(few, plain, *kept)
    assert "got 100 (--reference)" in said(samples, few, *kept)
    assert "no such file" in said(str(tmp_path / "none.npz"), plain, *kept)
    assert "no such file" in said(samples, str(tmp_path / "none.npz"), *kept)
    assert "give it as --weights" in said(data["classifier"], plain, *kept)
    assert "got a weights file" not in said(samples, plain, "--classifier", samples)
    assert "--num: expected at least 2, got 1" in said(samples, plain, "--num", "1")
    assert "--metric: expected one or several of classifier, fid" in said(samples, plain, "--metric", "is")
    colour = archive(tmp_path / "colour.npz", bars(600, shape=(3, 8, 8))[0])
    assert "got 3 channels of 8 x 8" in said(colour, plain, *kept)
    large = archive(tmp_path / "large.npz", bars(600, shape=(1, 9, 9))[0])
    assert "got 1 channel of 9 x 9" in said(large, plain, *kept)
    assert "expected a classifier of images like the reference's (1 channel of 9 x 9)" in said(
        large, large, *kept
    )
    # With one size for all, the same files can be compared.
    both = run(capsys, *_pair(large, plain), *kept, "--image-size", "8", "--json")
    assert json.loads(both)["samples"] == 600
    noise = archive(tmp_path / "noise.npz", bars(600)[0], bars(600, seed=7)[1])
    guessing = ["--labelled", noise, "--epochs", "1"]
    assert "its features are meaningful from" in said(samples, plain, *guessing)
    away = str(tmp_path / "no" / "result.json")
    # Where a result or a classifier cannot be kept is told before minutes of work.
    assert "--out: " in said(samples, plain, *kept, "--out", away)
    assert "no such folder" in said(samples, plain, "--classifier", away, "--labelled", noise)


def test_colour_and_grey_are_brought_to_one_by_channels(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: the advice of a refusal helps: with it, the same files are compared, and the result says how."""
    colour = archive(tmp_path / "colour.npz", bars(600, seed=1)[0].expand(-1, 3, -1, -1).contiguous())
    argv = [*_pair(colour, data["plain"]), "--classifier", data["classifier"]]
    said = refused(capsys, *argv)
    assert "--channels 1 compares all as grey; --channels 3 compares all as RGB" in said
    assert "--image-size" not in said
    out = tmp_path / "result.json"
    line = run(capsys, *argv, "--channels", "1", "--out", str(out))
    (result,) = json.loads(out.read_text())
    # Grey three times is that grey: the number is that of the grey samples.
    grey = json.loads(run(capsys, *_pair(data["samples"], data["plain"]), *argv[4:], "--json"))
    assert result["value"] == pytest.approx(grey["value"], rel=1e-6) and "grey, by --channels" in line
    assert "; grey, by --channels" in result["resize"] and "channels" not in grey["resize"]
    # A classifier of grey images takes no others.
    said = refused(capsys, *argv, "--channels", "3")
    assert "--channels 1 compares all as grey" in said and "--channels 3 compares" not in said
    large = archive(tmp_path / "large.npz", bars(600, shape=(3, 9, 9))[0])
    said = refused(capsys, *_pair(large, data["plain"]), *argv[4:])
    assert "--channels 1" in said and "--image-size N brings all to N x N" in said
    assert "--channels" not in refused(capsys, *_pair(large, colour), *argv[4:])
    alpha = archive(tmp_path / "alpha.npz", bars(600, shape=(4, 8, 8))[0])
    said = refused(capsys, *_pair(alpha, colour), *argv[4:])
    assert "--channels 3 compares all as RGB" in said and "--channels 4" not in said


def test_a_packed_folder_of_samples_is_known_however_its_names_are_spelled(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"sampler": "naive", "seeds": "0-9", "class": '3 "dog"'}
    for form in ("./{}", "samples\\{}", "/samples/{}"):
        packed = tmp_path / "packed.zip"
        with zipfile.ZipFile(packed, "w") as archived:
            for seed, image in enumerate(bars(10, seed=2)[0]):
                Image.fromarray(image[0].numpy()).save(tmp_path / "one.png")
                archived.write(tmp_path / "one.png", form.format(f"{seed:06d}.png"))
            archived.writestr(form.format("samples.json"), json.dumps(record))
            archived.writestr("__MACOSX\\._samples.json", "no")
        argv = [*_pair(str(packed), data["plain"]), "--classifier", data["classifier"], "--num", "10"]
        said = run(capsys, *argv)
        assert "10 of " in said and "sampler naive" in said and 'class 3 "dog"' in said


def _pair(images: str, reference: str) -> list[str]:
    return ["--images", images, "--reference", reference]


def test_nothing_is_downloaded_for_fid(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*_pair(data["samples"], data["plain"]), "--metric", "fid,kid"]
    said = refused(capsys, *argv)
    # The sentence names the file and its release, and that it is the user's to fetch.
    assert "weights-inception-2015-12-05-6726825d.pth" in said and "v0.2.0" in said
    assert "downloads nothing" in said
    assert "--classifier is for --metric classifier" in refused(capsys, *argv, "--classifier", "c")
    # The convention on numbers comes before any work.
    few = [*argv, "--feature-extractor-weights", str(tmp_path / "none.pth")]
    assert "--metric fid needs 10000 images or more on both sides, got 600" in refused(capsys, *few)
    alpha = archive(tmp_path / "alpha.npz", bars(20, shape=(2, 8, 8))[0])
    argv = [*_pair(alpha, alpha), *few[4:], "--num", "20"]
    assert "put images with alpha on a background first, got 2 channels; --channels 3" in refused(
        capsys, *argv
    )


def _fidelity(name: str) -> Any:
    """A module of torch-fidelity.

    Its package imports torchvision, for other extractors and for data sets. Each torchvision is built for one
    torch, so the tests do not install it: an empty one stands in while the package is imported.
    """
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torchvision") is None:
            for part in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
                patch.setitem(sys.modules, "torchvision" + part, MagicMock())
        return pytest.importorskip(f"torch_fidelity.{name}")


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in torch-fidelity's format with random weights, scaled so that signals come through."""
    module = _fidelity("feature_extractor_inceptionv3")
    empty: dict[str, Tensor] = {}

    def none(*_: Any, **__: Any) -> dict[str, Tensor]:
        return empty

    with pytest.MonkeyPatch.context() as patch:
        # The constructor loads a state: it is given its own, empty one, which strictness would refuse.
        patch.setattr(module, "load_state_dict_from_url", none)
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("conv.weight"):
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
    path: Path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def early_layer(monkeypatch: pytest.MonkeyPatch) -> str:
    """64 features from Inception's first block: the same code in a hundredth of the time."""
    monkeypatch.setattr("softdiff_kernels.evaluation.inception.LAYER", "64")
    return "64"


def test_fid_is_the_distance_on_the_extractors_features(
    inception_weights: Path, early_layer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from softdiff_kernels.evaluation.inception import Inception

    one, two = bars(6, seed=3)[0], bars(6, seed=4)[0]
    first, second = archive(tmp_path / "one.npz", one), archive(tmp_path / "two.npz", two)
    argv = ["--metric", "fid,kid", "--feature-extractor-weights", str(inception_weights), "--num", "6"]
    out = tmp_path / "result.json"
    said = run(capsys, *_pair(first, second), *argv, "--out", str(out))
    fid, kid = json.loads(out.read_text())
    extractor = Inception(inception_weights, torch.device("cpu"))
    ours, theirs = (extractor.features(x, print) for x in (one, two))
    stats = [FeatureStatistics().update(f) for f in (ours, theirs)]
    wanted = frechet_distance(stats[0].mean, stats[0].covariance, stats[1].mean, stats[1].covariance)
    assert fid["value"] == pytest.approx(wanted, rel=1e-6) and wanted > 0
    # A figure on other weights than the published ones is not passed off as FID.
    assert "FID (Fréchet inception distance) with other weights: " in said
    assert "not comparable with any FID of others" in said and "bilinear" in said and "grey repeated" in said
    assert "fewer than 10000 images" in said and "± " in said and kid["std_over_subsets"] >= 0
    # Against itself, which --num alone does not forbid, the distance is 0 up to rounding.
    run(capsys, *_pair(first, first), *argv, "--out", str(out))
    assert json.loads(out.read_text())[0]["value"] <= 1e-6 * np.trace(stats[0].covariance)


def test_the_distance_is_the_number_that_torch_fidelity_gives(inception_weights: Path) -> None:
    fidelity = _fidelity("metric_fid")
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(300, 64, generator=generator, dtype=torch.float64).exp() for _ in range(2)]
    ours = [FeatureStatistics().update(f) for f in features]
    theirs = [fidelity.fid_features_to_statistics(f) for f in features]
    wanted = fidelity.fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert ours[0].distance(ours[1]) == pytest.approx(wanted, rel=1e-9)


def test_fid_takes_the_layer_that_it_is_defined_on(inception_weights: Path) -> None:
    from softdiff_kernels.evaluation.inception import Inception

    extractor = Inception(inception_weights, torch.device("cpu"))
    assert extractor.features(bars(2)[0], print).shape == (2, 2048) and not extractor.published


def test_files_that_are_no_inception_weights_are_refused(inception_weights: Path, tmp_path: Path) -> None:
    from softdiff_kernels.evaluation.inception import Inception

    cpu = torch.device("cpu")
    with pytest.raises(UserError, match=r"no such file \(expected weights-inception"):
        Inception(tmp_path / "none.pth", cpu)
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    with pytest.raises(UserError, match="got a file without tensors"):
        Inception(text, cpu)
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="got other tensors"):
        Inception(tmp_path / "other.pth", cpu)
    # A pickle that would run code is not let through to be unpickled.
    torch.save({"a": _Shout()}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="got a file without tensors"):
        Inception(tmp_path / "code.pth", cpu)


class _Shout:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("code in a weights file was run",))


def test_help_and_docs_name_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(f"{name} ({metric.summary})" in words for name, metric in METRICS.items())
    docs = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    table = docs.split("| `--metric` |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [name.strip("`") for name, _, _ in rows] == list(METRICS)
    for (_, _, images), metric in zip(rows, METRICS.values(), strict=True):
        numbers = [int(number.replace(" ", "")) for number in re.findall(r"[\d ]*\d", images)]
        assert numbers == [metric.fewest, *([metric.published] if metric.published else [])]


def test_the_python_example_in_the_docs_runs() -> None:
    pytest.importorskip("sklearn")
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8").split("## In Python")[1]
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ") or not line]
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    # The same features by two ways, and two halves of one set that are near each other.
    assert names["distance"] == pytest.approx(names["frechet"], rel=1e-9) and 0 < names["distance"] < 5
    assert names["spread"] > 0


def test_options_and_lines() -> None:
    config = EvaluateConfig(
        reference="r", images="i", metric="kid, classifier", feature_extractor_weights="w"
    )
    assert config.metrics == ("kid", "classifier")
    for metric in ("", "kid,kid", "classifier,psnr"):
        with pytest.raises(UserError, match="--metric: expected"):
            EvaluateConfig(reference="r", images="i", metric=metric, feature_extractor_weights="w")
    # Guidance and class stand in the lines where a record has them.
    result: dict[str, Any] = dict.fromkeys(
        ("weights", "step", "prior", "sampler", "steps", "seeds", "samples_source"), "x"
    )
    result |= {"metric": "m", "value": 1.0, "samples": 2, "reference": 3, "reference_source": "r"}
    result |= {"samples_digest": "a", "reference_digest": "b", "features": "f", "held_out_accuracy": 0.9}
    result |= {"resize": "8 x 8", "channels": 1, "notes": [], "guidance": 1.5, "class": "3"}
    assert "guidance 1.5, class 3" in described(result)


@pytest.mark.parametrize(
    ("seeds", "record"),
    [
        (np.array([{}] * 5), "{}"),
        (np.arange(4), "{}"),
        (np.array(3), "{}"),
        (np.array(["a"] * 5), "{}"),
        (np.array([-1, 0, 1, 2, 3]), "{}"),
        (np.arange(5), np.array({}, dtype=object)),
        (np.arange(5), "[" * 100_000),
    ],
)
def test_an_archive_whose_record_is_damaged(tmp_path: Path, seeds: np.ndarray, record: Any) -> None:
    # Rule: what `softdiff sample --npz` would not have written is one sentence that names the file.
    path = tmp_path / "all.npz"
    np.savez(path, arr_0=np.zeros((5, 8, 8, 1), np.uint8), seeds=seeds, record=np.array(record))
    config = EvaluateConfig("digits", images=str(path))
    with pytest.raises(UserError, match=r"all\.npz: .*(seeds|record)"):
        samples(config, lambda _: None)
