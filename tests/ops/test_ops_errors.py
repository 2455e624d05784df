# SPDX-License-Identifier: Apache-2.0
"""Bad arguments: one clear sentence with what was got and what was expected, before anything is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checks import BACKENDS, picture

import softdiff_kernels as sk

X = picture(2, 3, 4, 5)
NAN, INF = float("nan"), float("inf")


def reverse(x=X, y=X, **changes):
    return sk.reverse_step(x, y, **{"blur_std_t": 2.0, "blur_std_s": 1.0, "a": 0.5, "b": 0.1, **changes})


def momentum(x=X, y=X, **changes):
    stds = {"blur_std_t": 2.0, "blur_std_s": 1.0, "noise_std_t": 0.2, "noise_std_s": 0.1}
    return sk.momentum_step(x, y, **{**stds, **changes})


def reverse_twin(x=X, y=X, **changes):
    stds = {"blur_std_t": 2.0, "blur_std_s": 1.0, "a": 0.5, "b": 0.1}
    return sk.reference.reverse_step(x, y, **{**stds, **changes})


# Every op as a function of its first image, with the names of the op and of the image.
FIRST = {
    "dct2": ("x", sk.dct2),
    "idct2": ("u", sk.idct2),
    "blur": ("x", lambda x: sk.blur(x, 1.0)),
    "corrupt": ("x0", lambda x: sk.corrupt(x, 1.0, 0.1)),
    "reverse_step": ("x_t", reverse),
    "momentum_step": ("x_t", momentum),
    "soft_score_loss": ("prediction", lambda x: sk.soft_score_loss(x, X, 1.0)),
    "spectral_mix": (r"inputs\[0\]", lambda x: sk.spectral_mix([x], [torch.ones(1)])),
}
# Every op of several images as a function of its second.
SECOND = {
    "corrupt": ("noise", lambda y: sk.corrupt(X, 1.0, 0.1, noise=y)),
    "reverse_step": ("x0_hat", lambda y: reverse(X, y)),
    "momentum_step": ("x0_hat", lambda y: momentum(X, y)),
    "soft_score_loss": ("target", lambda y: sk.soft_score_loss(X, y, 1.0)),
    "spectral_mix": (r"inputs\[1\]", lambda y: sk.spectral_mix([X, y], [torch.ones(1), torch.ones(1)])),
}


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with sk.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("op", FIRST)
def test_wrong_rank(op):
    name, call = FIRST[op]
    for shape in ((4, 5), (3, 4, 5), (1, 2, 3, 4, 5)):
        got = rf"float32 tensor \[{', '.join(map(str, shape))}\] on cpu"
        with pytest.raises(ValueError, match=rf"^{op}: expected {name} as \[B, C, H, W\], got {got}$"):
            call(torch.zeros(shape))


@pytest.mark.parametrize("op", FIRST)
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.bool, torch.complex64, torch.uint8], ids=str
)
def test_wrong_dtype(op, dtype):
    # Only corrupt decodes images of bytes.
    name, call = FIRST[op]
    x = torch.zeros(2, 3, 4, 5, dtype=dtype)
    if op == "corrupt" and dtype == torch.uint8:
        assert call(x).dtype == torch.float32
        return
    got = rf"got {str(dtype).removeprefix('torch.')} tensor \[2, 3, 4, 5\] on cpu"
    with pytest.raises(
        TypeError, match=rf"^{op}: expected {name} as float64, float32, bfloat16 or float16.*{got}$"
    ):
        call(x)


@pytest.mark.parametrize("op", FIRST)
@pytest.mark.parametrize("x", [None, [[1.0]], 3], ids=str)
def test_not_a_tensor(op, x):
    name, call = FIRST[op]
    with pytest.raises(
        TypeError, match=rf"^{op}: expected {name} as a tensor \[B, C, H, W\], got {type(x).__name__}"
    ):
        call(x)


@pytest.mark.parametrize("op", FIRST)
@pytest.mark.parametrize(
    "kind",
    [
        "sparse",
        "mkldnn",
        pytest.param("nested", marks=pytest.mark.filterwarnings("ignore:The PyTorch API of nested")),
    ],
)
def test_images_that_are_not_dense(op, kind):
    # They have no strides, or no sizes: refused by name, coefficients and masks as well.
    x = {
        "sparse": X.to_sparse,
        "mkldnn": X.to_mkldnn,
        "nested": lambda: torch.nested.nested_tensor([*X]),
    }[kind]()
    name, call = FIRST[op]
    with pytest.raises(TypeError, match=rf"{name} as a dense tensor, got {kind}\w* float32 tensor"):
        call(x)
    with pytest.raises(TypeError, match=r"masks\[0\] as a dense tensor, got "):
        sk.spectral_mix([X], [x])
    with pytest.raises(TypeError, match=r"blur_std as a dense tensor, got sparse_coo float32 tensor \[2\]"):
        sk.blur(X, torch.ones(2).to_sparse())


@pytest.mark.parametrize("op", FIRST)
def test_images_without_pixels(op):
    name, call = FIRST[op]
    for shape in ((2, 3, 0, 5), (2, 3, 4, 0)):
        with pytest.raises(ValueError, match=rf"^{op}: expected {name} with H and W of at least 1, got"):
            call(torch.zeros(shape))


@pytest.mark.parametrize("op", SECOND)
def test_mismatched_shapes(op):
    # No broadcasting between images: a forgotten channel or batch is an error, not a surprise.
    name, call = SECOND[op]
    for shape in ((1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 5, 4), (3, 3, 4, 5)):
        got = rf"float32 tensor \[{', '.join(map(str, shape))}\]"
        with pytest.raises(ValueError, match=rf"^{op}: expected {name} of shape \[2, 3, 4, 5\], got {got}"):
            call(torch.zeros(shape))


@pytest.mark.parametrize("op", SECOND)
def test_mismatched_devices(op):
    name, call = SECOND[op]
    with pytest.raises(ValueError, match=rf"^{op}: expected {name} on cpu, got float32 tensor .* on meta$"):
        call(torch.zeros(X.shape, device="meta"))


def test_both_key_and_noise():
    key = sk.NoiseKey(0)
    for op, call in (
        ("corrupt", lambda: sk.corrupt(X, 1.0, 0.1, key=key, noise=X)),
        ("reverse_step", lambda: reverse(key=key, noise=X)),
        ("momentum_step", lambda: momentum(key=key, noise=X)),
    ):
        with pytest.raises(ValueError, match=rf"^{op}: expected key or noise, got both$"):
            call()


def test_words_that_are_no_choice():
    with pytest.raises(
        ValueError, match=r"^momentum_step: expected variance as one of 'large', 'small', got 'medium'$"
    ):
        momentum(variance="medium")
    with pytest.raises(
        ValueError,
        match=r"^soft_score_loss: expected reduction as one of 'none', 'mean', 'sum', got 'average'$",
    ):
        sk.soft_score_loss(X, X, 1.0, reduction="average")


def test_spectral_mix_of_odd_arguments():
    one = torch.ones(1)
    for inputs, masks, error, message in (
        (X, [one], TypeError, "expected inputs and masks as sequences of tensors, got a tensor"),
        ([X], one, TypeError, "expected inputs and masks as sequences of tensors, got a tensor"),
        ([], [], ValueError, "expected as many masks as inputs, at least one; got 0 inputs and 0 masks"),
        ([X], [one, one], ValueError, "got 1 inputs and 2 masks"),
        (
            [X],
            [torch.ones(3)],
            ValueError,
            r"expected masks\[0\] to broadcast to \[2, 3, 4, 5\], got float32 tensor \[3\]",
        ),
        ([X], [torch.ones(1, 2, 3, 4, 5)], ValueError, r"expected masks\[0\] to broadcast to"),
        (
            [X],
            [torch.ones(5, dtype=torch.int64)],
            TypeError,
            r"expected masks\[0\] as a floating-point tensor",
        ),
        ([X], [2.0], TypeError, r"expected masks\[0\] as a floating-point tensor, got float 2.0"),
        ([X], [one.to("meta")], ValueError, r"expected masks\[0\] on cpu, got float32 tensor \[1\] on meta"),
    ):
        with pytest.raises(error, match=r"^spectral_mix: .*" + message):
            sk.spectral_mix(inputs, masks)
    with pytest.raises(ValueError, match=r"^spectral_mix: expected noise_mask to broadcast to"):
        sk.spectral_mix([X], [one], noise_mask=torch.ones(4))


def test_normal_of_odd_arguments():
    key = sk.NoiseKey(0)
    with pytest.raises(TypeError, match=r"^normal: expected key as a NoiseKey, got int 7$"):
        sk.normal((2, 3), 7)
    with pytest.raises(
        ValueError, match=r"^normal: expected shape as \[B, ...\] of sizes of at least 0, got \[\]$"
    ):
        sk.normal((), key)
    with pytest.raises(ValueError, match=r"got \[2, -1\]$"):
        sk.normal((2, -1), key)
    for shape in (3, "23", (2, 3.0), (2, True), (2, np.bool_(True)), (2, "3"), None, np.zeros((300, 300))):
        with pytest.raises(ValueError, match=r"^normal: expected shape as \[B, ...\] of sizes") as refused:
            sk.normal(shape, key)
        assert len(str(refused.value)) < 250
    for shape in ((10**400,), (2, 10**5000), (2**40, 2**40)):
        with pytest.raises(ValueError, match=r"^normal: expected shape of fewer than 2\^63 elements, got"):
            sk.normal(shape, key)
    with pytest.raises(TypeError, match=r"^normal: expected dtype as float64, float32, .* got torch.int32$"):
        sk.normal((2, 3), key, dtype=torch.int32)


@pytest.mark.parametrize(
    "bad",
    [
        {"blur_std_t": -1.0},
        {"blur_std_t": torch.tensor([2.0, NAN])},
        {"blur_std_s": torch.tensor([1.0, -1.0])},
        {"a": INF},
        {"b": torch.tensor([0.1, -0.1])},
        {"floor": 2.0},
        {"key": sk.NoiseKey(0), "noise": X},
        {"noise": torch.zeros(1, 1, 1, 1)},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_out_is_untouched_by_a_refused_call(bad):
    # Whatever was wrong, nothing was written: the first sample's values were good, and are not there either.
    # The eager twin of the same name refuses the same.
    for step in (reverse, reverse_twin):
        out = torch.full(X.shape, 7.0)
        with pytest.raises((ValueError, TypeError), match=r"^reverse_step: "):
            step(out=out, **bad)
        assert bool((out == 7.0).all())


@pytest.mark.parametrize(
    "bad", [{"noise_std_s": torch.tensor([0.1, 0.3])}, {"blur_std_s": 3.0}, {"variance": "x"}]
)
def test_out_is_untouched_by_a_refused_momentum_step(bad):
    out = torch.full(X.shape, 7.0)
    with pytest.raises(ValueError, match=r"^momentum_step: "):
        momentum(out=out, **bad)
    assert bool((out == 7.0).all())


def test_sizes_of_numpy_are_sizes():
    key = sk.NoiseKey(0)
    for shape in ((np.int64(2), 3), np.array([2, 3]), torch.Size([2, 3]), [2, np.uint8(3)]):
        assert torch.equal(sk.normal(shape, key), sk.normal((2, 3), key))


def test_messages_are_short_whatever_was_given():
    # Rule: no message prints a whole array, nor all of a long list, text or number.
    class Unprintable:
        def __repr__(self):
            raise RuntimeError("no repr")

    long = ("x" * 10**6, list(range(10**5)), np.zeros((100, 100)), 10**5000, [10**5000], Unprintable())
    for value in long:
        for call in (
            lambda v: sk.blur(v, 1.0),
            lambda v: sk.corrupt(X, 1.0, 0.1, key=v),
            lambda v: sk.spectral_mix([X], [v]),
            lambda v: sk.spectral_mix([X], [torch.ones(1)], noise_mask=v),
            lambda v: momentum(variance=v),
            lambda v: sk.soft_score_loss(X, X, 1.0, reduction=v),
            lambda v: sk.normal((2, 3), v),
            lambda v: sk.normal((2, 3), sk.NoiseKey(0), dtype=v),
            lambda v: sk.use_backend(v).__enter__(),
        ):
            with pytest.raises((TypeError, ValueError), match=r"expected .*, got ") as refused:
                call(value)
            assert len(str(refused.value)) < 300


def test_the_registered_ops_read_no_memory_that_is_not_theirs():
    # Kernels read by addresses. Who calls the registered op, or a graph traced for another batch, gets
    # an error where shapes do not agree, on every backend, instead of what lies behind the tensor.
    x, y = picture(3, 1, 4, 4), picture(2, 1, 4, 4)
    std, ops = torch.ones(2), torch.ops.softdiff
    traced = torch.jit.trace(lambda image: sk.blur(image, std), y, check_trace=False)
    calls = [
        lambda: ops.blur(x, std, None, 0.0),
        lambda: ops.corrupt(x, torch.ones(1), torch.ones(1), None, 0.0, [], None, y, False),
        lambda: ops.corrupt(
            x, torch.ones(1), torch.ones(1), None, 0.0, [], torch.zeros(2, 3).long(), None, False
        ),
        lambda: ops.soft_score_loss(x, y, torch.ones(1), None, 0.0, "mean"),
        lambda: ops.step(x, y, *[torch.ones(1)] * 4, "given", 0.0, [], None, None),
        lambda: ops.step_out(x, x, *[torch.ones(1)] * 4, "given", 0.0, [], None, None, y),
        lambda: ops.spectral_mix([x, y], [torch.ones(1)] * 2, None, [], None, None),
        lambda: ops.spectral_mix([y, y], [torch.ones(1)] * 2, one, [], None, x),
        lambda: ops.spectral_loss(x, y, torch.ones(1), None, "mean"),
        lambda: traced(x),
    ]
    one = torch.ones(1)
    noisy = lambda key, rows: ops.corrupt(y, one, one, None, 0.0, key, rows, None, False)  # noqa: E731
    calls += [
        # What a graph does after `.half()`, and kinds and sizes that the kernels would take for others.
        lambda: ops.blur(y, std.half(), None, 0.0),
        lambda: ops.blur(y, torch.tensor(1.0), None, 0.0),
        lambda: ops.blur(y, torch.ones(2, 1), None, 0.0),
        lambda: ops.blur(y.byte(), one, None, 0.0),
        lambda: ops.dct2(y[0], False),
        lambda: ops.blur(y[:, :, :0], one, None, 0.0),
        lambda: noisy([1, 2], None),
        lambda: noisy([], torch.zeros(1, 3)),
        lambda: noisy([], torch.zeros(2, 1).long()),
        lambda: ops.normal([2, 3], [], None, torch.float32, torch.device("cpu")),
        lambda: ops.normal([2, 3], [], torch.zeros(3, 3).long(), torch.float32, torch.device("cpu")),
    ]
    for call in calls:
        with pytest.raises((ValueError, RuntimeError), match="expected images of one shape"):
            call()
    with pytest.raises(ValueError, match="reduction as one of 'none', 'mean', 'sum', got 'maen'"):
        ops.soft_score_loss(y, y, one, None, 0.0, "maen")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_registered_ops_take_no_number_or_word_that_they_would_pass_by(backend):
    # A floor outside [0, 1], an unknown rule, and noise without its mask are refused in the op itself: the
    # kernels would compute something else in silence.
    x, one, ops = picture(2, 1, 4, 4), torch.ones(1), torch.ops.softdiff
    calls = [lambda f=f: ops.blur(x, one, None, f) for f in (-0.1, 1.5, float("nan"))]
    calls += [
        lambda f=f: ops.corrupt(x, one, one, None, f, [], None, None, False)
        for f in (-0.1, 1.5, float("nan"))
    ]
    calls += [lambda f=f: ops.soft_score_loss(x, x, one, None, f, "mean") for f in (-0.1, 1.5, float("nan"))]
    calls += [
        lambda r=r, f=f: ops.step(x, x, one, one, one, one, r, f, [], None, None)
        for r, f in (("Large", 0.0), ("", 0.0), ("large", 1.5), ("small", -0.5), ("given", 1.5))
    ]
    calls.append(lambda: ops.spectral_mix([x], [one], None, [], None, x))
    calls.append(
        lambda: ops.step_out(x, x, one, one, one, one, "none", 0.0, [], None, None, torch.empty_like(x))
    )
    with sk.use_backend(backend):
        for call in calls:
            with pytest.raises(ValueError, match=r"^softdiff::.*expected .*(floor|rule|noise_mask)"):
                call()
