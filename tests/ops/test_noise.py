# SPDX-License-Identifier: Apache-2.0
"""The noise stream: published integers, and one stream on every backend."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from checks import BACKENDS, MODELLED, needs_native, on

import softdiff_kernels as sk
from softdiff_kernels import noise
from softdiff_kernels.bench.timing import threads

LOW = 0xFFFFFFFF


def philox_by_hand(counter: list[int], seed: int) -> list[int]:
    """Philox4x32-10 in Python integers, straight from the paper's definition."""
    k0, k1 = seed & LOW, seed >> 32 & LOW
    c = list(counter)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & LOW, (p0 >> 32) ^ c[3] ^ k1, p0 & LOW]
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # Random123's kat_vectors, philox4x32 10 rounds: zeros, ones, and the digits of pi.
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([LOW] * 4, [LOW] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_published_known_answers(counter, key, words):
    expected = [int(w, 16) for w in words.split()]
    got = noise.philox4x32([torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key])
    assert [int(w) for w in got] == expected
    assert philox_by_hand(counter, key[0] | key[1] << 32) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63, 2**64 - 1, -1])
@pytest.mark.parametrize("stream", [0, 2**32 - 1, 2**63 + 7, 2**64 - 2])
@pytest.mark.parametrize("draw", [0, 2**32 - 1])
def test_words_are_philox_of_the_designed_counter(seed, stream, draw):
    # Counter (block, draw, stream_low, stream_high), key (seed_low, seed_high), word j for element
    # 4 block + j, and sample b has stream + b, modulo 2^64.
    rows = noise.key_rows(*noise.pack_key(sk.NoiseKey(seed, stream, draw), 3, torch.device("cpu")), 3, "cpu")
    words = noise.philox_words(rows, 10)
    for b in range(3):
        own = (stream + b) % 2**64
        expected = []
        for block in range(3):
            expected += philox_by_hand([block, draw, own & LOW, own >> 32], seed % 2**64)
        assert words[b].tolist() == expected[:10]


def normals_by_hand(key: sk.NoiseKey, sample: int, count: int) -> list[float]:
    """Box-Muller over philox_by_hand, in Python floats."""
    own, out = (key.stream + sample) % 2**64, []
    for block in range((count + 3) // 4):
        w = philox_by_hand([block, key.draw, own & LOW, own >> 32], key.seed % 2**64)
        for r, q in ((w[0], w[1]), (w[2], w[3])):
            u = ((r >> 8) + 0.5) * 2.0**-24
            theta = (q - 2**32 if q >= 2**31 else q) * 2 * math.pi / 2**32
            out += [
                math.sqrt(-2 * math.log(u)) * math.cos(theta),
                math.sqrt(-2 * math.log(u)) * math.sin(theta),
            ]
    return out[:count]


KEYS = [
    sk.NoiseKey(0),
    sk.NoiseKey(2**63 + 11, 2**64 - 1, 5),
    sk.NoiseKey(123, 2**32 - 1, 2**32 - 1),
    sk.NoiseKey(-4, -2, 77),
]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_normals_are_box_muller_of_the_words(name, key):
    # Normals agree to 2e-6 absolute. A wrong word gives another normal altogether, so that agreement over
    # every element shows the integers equal, too. 67 elements: neither a whole block nor a whole vector.
    with sk.use_backend(name):
        got = sk.normal((3, 67), key)
    for b in range(3):
        expected = torch.tensor(normals_by_hand(key, b, 67), dtype=torch.float64)
        assert (got[b].double() - expected).abs().max() < 2e-6


@needs_native
@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3, 1, 1), (3, 1, 5, 7), (2, 3, 17, 31), (1, 70001), (4, 3, 64, 64)]
)
def test_backends_agree_to_2e_6(shape):
    key = sk.NoiseKey(2**63 + 5, 2**40, 9)
    truth = sk.reference.normal(shape, key, dtype=torch.float64)
    with sk.use_backend("native"):
        assert (sk.normal(shape, key).double() - truth).abs().max() < 2e-6


@pytest.mark.parametrize("name", MODELLED[2:])
@pytest.mark.parametrize("errors", ["down", "up"])
def test_normals_agree_to_2e_6_where_a_gpu_approximates(name, errors):
    # As far off as lg2 and sqrt may be, to either side: 1.6e-6 over two million normals.
    key = sk.NoiseKey(11, 2**40, 3)
    truth = sk.reference.normal((1, 100_000), key, dtype=torch.float64)
    with on(name, errors):
        assert float((sk.normal((1, 100_000), key).double() - truth).abs().max()) < 2e-6


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_the_float32_normals_rounded(name, dtype):
    with sk.use_backend(name):
        wide, narrow = (sk.normal((2, 3, 9, 5), sk.NoiseKey(3), dtype=d) for d in (torch.float32, dtype))
    assert narrow.dtype == dtype
    if name == "native":
        assert torch.equal(narrow, wide.to(dtype))
    else:  # rounded once, from float64
        assert torch.equal(
            narrow, sk.reference.normal((2, 3, 9, 5), sk.NoiseKey(3), dtype=torch.float64).to(dtype)
        )


@pytest.mark.parametrize("name", BACKENDS)
def test_a_batch_split_anywhere_has_the_same_noise(name):
    # Sample b's noise depends on stream + b alone: bit for bit, however the batch is cut.
    x = torch.zeros(7, 3, 9, 10)
    with sk.use_backend(name):
        whole = sk.corrupt(x, 0.0, 1.0, key=sk.NoiseKey(5, 100))
        for cuts in ([0, 7], [0, 1, 7], [0, 3, 4, 7], list(range(8))):
            parts = [
                sk.corrupt(x[i:j], 0.0, 1.0, key=sk.NoiseKey(5, 100 + i)) for i, j in itertools.pairwise(cuts)
            ]
            assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", BACKENDS)
def test_images_of_other_sizes_share_the_stream(name):
    # Element e depends on e alone: a shorter image has the beginning of a longer one's noise.
    with sk.use_backend(name):
        long, short = (sk.normal((2, n), sk.NoiseKey(8)) for n in (5000, 1234))
    assert torch.equal(long[:, :1234], short)


@pytest.mark.parametrize("name", BACKENDS)
def test_stream_as_a_number_and_as_a_tensor(name):
    # A number names consecutive images, a tensor [B] names each one, a tensor of one element is a number.
    numbers = torch.tensor([40, 41, 42])
    with sk.use_backend(name):
        expected = sk.normal((3, 50), sk.NoiseKey(1, 40, 2))
        assert torch.equal(sk.normal((3, 50), sk.NoiseKey(1, numbers, 2)), expected)
        assert torch.equal(sk.normal((3, 50), sk.NoiseKey(1, torch.tensor(40), torch.tensor([2]))), expected)
        assert torch.equal(
            sk.normal((3, 50), sk.NoiseKey(torch.tensor(1), 40, torch.tensor([2, 2, 2]))), expected
        )
        shuffled = sk.normal((3, 50), sk.NoiseKey(1, numbers[[2, 0, 1]], 2))
    assert torch.equal(shuffled, expected[[2, 0, 1]])


@pytest.mark.parametrize("name", BACKENDS)
def test_seeds_and_streams_of_64_bits(name):
    # 2^63 + 5 as a number is the same bits as the int64 tensor -2^63 + 5; -1 is 2^64 - 1.
    tensor = torch.tensor([-(2**63) + 5])
    with sk.use_backend(name):
        assert torch.equal(
            sk.normal((2, 30), sk.NoiseKey(2**63 + 5)), sk.normal((2, 30), sk.NoiseKey(tensor))
        )
        assert torch.equal(
            sk.normal((2, 30), sk.NoiseKey(-1, -1)), sk.normal((2, 30), sk.NoiseKey(2**64 - 1, 2**64 - 1))
        )
        assert not torch.equal(sk.normal((2, 30), sk.NoiseKey(5)), sk.normal((2, 30), sk.NoiseKey(2**63 + 5)))


@pytest.mark.parametrize("name", BACKENDS)
def test_noise_does_not_depend_on_the_memory_format(name):
    # Element order is C, H, W whatever the strides: channels_last and transposed images get the same noise.
    x, key = torch.zeros(2, 3, 6, 10), sk.NoiseKey(4)
    with sk.use_backend(name):
        expected = sk.corrupt(x, 0.0, 1.0, key=key)
        last = sk.corrupt(x.contiguous(memory_format=torch.channels_last), 0.0, 1.0, key=key)
        turned = sk.corrupt(torch.zeros(2, 3, 10, 6).mT, 0.0, 1.0, key=key)
        assert torch.equal(expected.flatten(1), sk.normal((2, 180), key))
    assert torch.equal(last, expected)
    assert torch.equal(turned, expected)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    "shape", [(2, 3, 1, 1), (2, 4, 3, 5), (1, 3, 9, 10), (2, 2, 17, 31), (1, 2, 2, 1500)], ids=str
)
def test_every_op_draws_the_noise_that_normal_names(name, shape):
    # Planes begin anywhere in a block of four, and rows anywhere in a run: what corrupt, both steps and a mix
    # add is normal's noise, element by element, and bit for bit where nothing else is added.
    # On CUDA, momentum_step takes its weight, 1, from an approximate root: within two roundings.
    largest = {"triton": 512, "cuda": 1024}.get(name, shape[3])  # beyond, another backend draws
    shape = (*shape[:3], min(shape[3], largest))
    zero, key = torch.zeros(shape), sk.NoiseKey(2**40, 9, 2)
    with sk.use_backend(name):
        expected = sk.normal(shape, key)
        assert torch.equal(sk.corrupt(zero, 0.0, 1.0, key=key), expected)
        assert torch.equal(sk.corrupt(zero, 3.0, 1.0, key=key), expected)
        given = {"blur_std_t": 2.0, "blur_std_s": 1.0, "key": key}
        assert torch.equal(sk.reverse_step(zero, zero, a=0.5, b=1.0, **given), expected)
        step = sk.momentum_step(zero, zero, noise_std_t=1.0, noise_std_s=0.0, **given)
        assert bool(((step - expected).abs() <= (2.0**-22 if name == "cuda" else 0.0) * expected.abs()).all())
        mixed = sk.spectral_mix([zero], [torch.zeros(1)], noise_mask=torch.ones(1), key=key)
        # dct2 undoes the mix's inverse transform: each is right to 1e-6 relative.
        assert float((sk.dct2(mixed) - expected).norm() / expected.norm()) < 2e-6


@needs_native
@pytest.mark.parametrize("count", [1, 2, 3])
def test_noise_does_not_depend_on_the_number_of_threads(count):
    with sk.use_backend("native"), threads(count):
        assert torch.equal(
            sk.normal((3, 40000), sk.NoiseKey(2)),
            torch.cat([sk.normal((1, 40000), sk.NoiseKey(2, b)) for b in range(3)]),
        )


@pytest.mark.parametrize("name", BACKENDS)
def test_a_fresh_key_follows_torchs_seed(name):
    # Without a key, noise comes from torch's default generator: the same after the same manual_seed, another
    # at the next call, and the same on both backends.
    x = torch.zeros(2, 1, 5, 5)

    def draw():
        return sk.corrupt(x, 0.0, 1.0)

    with sk.use_backend(name):
        torch.manual_seed(17)
        first, second = draw(), draw()
        torch.manual_seed(17)
        again = draw()
    with sk.use_backend("reference"):
        torch.manual_seed(17)
        eager = draw()
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert (first - eager).abs().max() < 4e-6  # each within 2e-6 of the float64 normals


@pytest.mark.parametrize("name", BACKENDS)
def test_shapes_of_any_rank_and_empty_ones(name):
    with sk.use_backend(name):
        assert sk.normal((3,), sk.NoiseKey(0)).shape == (3,)
        assert sk.normal((0, 3, 4, 4), sk.NoiseKey(0)).shape == (0, 3, 4, 4)
        assert sk.normal((2, 0), sk.NoiseKey(0)).shape == (2, 0)
        assert torch.equal(sk.normal((3,), sk.NoiseKey(0)), sk.normal((3, 1), sk.NoiseKey(0)).flatten())


@pytest.mark.parametrize("name", BACKENDS)
def test_keys_of_no_image(name):
    # A batch of none takes tensors of none, of one, and numbers, in any mixture.
    x, none, one = (
        torch.zeros(0, 1, 2, 2),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
    )
    with sk.use_backend(name):
        for parts in ((0, none), (one, none), (none, 0), (0, none, one), (none, one, 3)):
            assert sk.corrupt(x, 0.0, 1.0, key=sk.NoiseKey(*parts)).shape == x.shape


def test_at_names_another_draw():
    key = sk.NoiseKey(1, 2, 3)
    assert key.at(9) == sk.NoiseKey(1, 2, 9)
    assert not torch.equal(sk.normal((1, 9), key), sk.normal((1, 9), key.at(9)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": 1.5}, TypeError, "expected seed as an int or an int64 tensor, got float"),
        ({"seed": True}, TypeError, "expected seed as an int or an int64 tensor, got bool"),
        ({"seed": 2**64}, ValueError, r"expected seed in \[-9223372036854775808, 18446744073709551616\)"),
        ({"seed": 0, "draw": -1}, ValueError, r"expected draw in \[0, 4294967296\), got -1"),
        ({"seed": 0, "draw": 2**32}, ValueError, "got 4294967296"),
        ({"seed": 0, "stream": torch.zeros(2)}, TypeError, "expected stream as .* got torch.float32"),
        ({"seed": 0, "stream": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, r"of shape \[2, 2\]"),
    ],
)
def test_bad_keys_say_what_was_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        sk.NoiseKey(**arguments)


def test_keys_that_do_not_fit_the_batch():
    x = torch.zeros(3, 1, 2, 2)
    with pytest.raises(ValueError, match=r"key\.stream: expected shape \[\], \[1\] or \[3\], got \[2\]"):
        sk.corrupt(x, 0.0, 1.0, key=sk.NoiseKey(0, torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"key\.draw: expected a tensor on cpu, got one on meta"):
        sk.corrupt(x, 0.0, 1.0, key=sk.NoiseKey(0, 0, torch.zeros(1, dtype=torch.int64, device="meta")))
    with pytest.raises(TypeError, match="expected key as a NoiseKey, got int 3"):
        sk.corrupt(x, 0.0, 1.0, key=3)


@pytest.mark.parametrize("part", ["seed", "stream", "draw"])
def test_whole_numbers_of_numpy_are_numbers(part):
    # Rule: a key holds Python ints, whatever they came as, so that keys compare and pack alike.
    for number in (np.int64(7), np.uint8(7), np.int32(7), np.array(7)):
        key = sk.NoiseKey(**{"seed": 0, part: number})
        assert key == sk.NoiseKey(**{"seed": 0, part: 7}) and type(getattr(key, part)) is int
    assert sk.NoiseKey(np.uint64(2**64 - 1)) == sk.NoiseKey(2**64 - 1)
    if part == "draw":
        assert sk.NoiseKey(0).at(np.int64(7)) == sk.NoiseKey(0).at(7)


@pytest.mark.parametrize("part", ["seed", "stream", "draw"])
def test_what_is_no_whole_number_is_refused_in_one_short_sentence(part):
    # Rule: a number with a point is not a key's, though it be whole; nothing is shown at length.
    wrong = (True, np.bool_(True), np.array(True), "7", 7.0, np.float32(7), np.array([7]), [7], None, 7j)
    for value in (*wrong, np.zeros((300, 300), dtype=np.int64), list(range(100_000))):
        pattern = rf"^NoiseKey: expected {part} as an int or an int64 tensor, got "
        with pytest.raises(TypeError, match=pattern) as refused:
            sk.NoiseKey(**{"seed": 0, part: value})
        assert len(str(refused.value)) < 250
    for value in (10**400, -(10**400), 10**5000):
        with pytest.raises(ValueError, match=rf"^NoiseKey: expected {part} in \[.*\), got -?10\^\d+ or so$"):
            sk.NoiseKey(**{"seed": 0, part: value})


@pytest.mark.parametrize("bad", [2**32, 2**40, -1, -(2**63)])
def test_draws_in_a_tensor_are_held_to_their_range(bad):
    # Rule: 2^32 would be draw 0 again, without a word. Refused as a number is, at once and, if the tensor was
    # counted up since, at use.
    for draw in (torch.tensor(bad), torch.tensor([bad]), torch.tensor([0, bad, 5])):
        for make in (lambda d: sk.NoiseKey(0, 0, d), sk.NoiseKey(0).at):
            with pytest.raises(
                ValueError, match=rf"^NoiseKey: expected draw in \[0, 4294967296\), got {bad}$"
            ):
                make(draw)
        key = sk.NoiseKey(0, 0, torch.zeros_like(draw))
        key.draw.copy_(draw)
        for module in (sk, sk.reference):
            with pytest.raises(
                ValueError, match=rf"^key.draw: expected numbers in \[0, 4294967296\), got {bad}$"
            ):
                module.normal((3, 2), key)
    with sk.use_backend("reference"):
        largest = torch.tensor([0, 2**32 - 1])
        expected = torch.cat([sk.normal((1, 4), sk.NoiseKey(3, i, int(d))) for i, d in enumerate(largest)])
        assert torch.equal(sk.normal((2, 4), sk.NoiseKey(3, 0, largest)), expected)


def test_draws_that_cannot_be_seen_are_not_looked_at():
    # On a device looking would wait for it; below vmap the numbers are there to see.
    sk.NoiseKey(0, 0, torch.zeros(2, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match=r"draw in \[0, 4294967296\), got 4294967296"):
        torch.func.vmap(lambda draw: sk.NoiseKey(0, 0, draw).draw + 0)(torch.tensor([2**32, 1]))
