"""Codes of -1, 0 and 1: they give back every value, come near the entropy, and refuse what is no code."""

import lzma
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flipout_jax._files import _gaps
from flipout_jax.reparam import _ternary

CODES = ("packed", "gaps", "lzma")
ENCODERS = {"packed": _ternary._pack, "gaps": _gaps.encode, "lzma": _ternary._compress}


def ternary(size, kept, negative=0.5, seed=0):
    rng = np.random.default_rng(seed)
    signs = np.where(rng.random(size) < negative, -1, 1)
    return np.where(rng.random(size) < kept, signs, 0).astype(np.int8)


@given(st.integers(0, 400), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2**32 - 1))
@example(0, 1.0, 0.5, 0)
@example(1, 0.0, 0.5, 0)
@example(29, 1.0, 1.0, 0)
def test_every_value_comes_back(size, kept, negative, seed):
    values = ternary(size, kept, negative, seed)
    lengths = []
    for coding in CODES:
        code = ENCODERS[coding](values)
        back = _ternary.decode(coding, code, size)
        assert back.dtype == np.int8
        np.testing.assert_array_equal(back, values)
        lengths.append(len(code))
    coding, code = _ternary.encode(values)
    assert code == ENCODERS[coding](values)
    assert len(code) == min(lengths)


def test_any_trits_take_1_6_bits():
    """29 in 46 bits, and a rest in as many as it needs."""
    for size in (0, 1, 5, 28, 29, 30, 58, 1000):
        groups, rest = divmod(size, 29)
        assert len(_ternary._pack(ternary(size, 2 / 3))) == -(-(46 * groups + int(np.ceil(rest * np.log2(3)))) // 8)


@pytest.mark.parametrize("kept", [1.0, 0.6, 0.2, 0.04, 0.006])
def test_codes_come_near_the_entropy(kept):
    size = 100_000
    values = ternary(size, kept)
    chances = [np.mean(values == value) for value in (-1, 0, 1)]
    entropy = -sum(p * np.log2(p) for p in chances if p)
    assert 8 * len(_ternary.encode(values)[1]) / size <= 1.025 * entropy + 64 / size
    # The sign is free where there is one alone.
    entropy -= np.mean(values != 0)
    assert 8 * len(_ternary.encode(abs(values))[1]) / size <= 1.05 * max(entropy, 0) + 64 / size


def test_what_repeats_takes_next_to_nothing():
    channels = np.tile(ternary(64, 0.5), 1000)
    assert len(_ternary.encode(channels)[1]) < channels.size / 500


@given(st.sampled_from(CODES), st.binary(max_size=60), st.integers(0, 200))
def test_other_bytes_are_refused_or_are_values(coding, data, size):
    check_decoding(coding, data, size)


@given(st.sampled_from(CODES), st.integers(1, 100), st.floats(0, 1), st.data())
def test_damaged_codes_are_refused_or_are_values(coding, size, kept, data):
    code = bytearray(ENCODERS[coding](ternary(size, kept)))
    for _ in range(data.draw(st.integers(1, 3))):
        code[data.draw(st.integers(0, len(code) - 1))] = data.draw(st.integers(0, 255))
    check_decoding(coding, bytes(code), size)
    check_decoding(coding, bytes(code[: data.draw(st.integers(0, len(code)))]), size)


def check_decoding(coding, data, size):
    try:
        values = _ternary.decode(coding, data, size)
    except ValueError:
        return
    assert values.shape == (size,)
    assert values.dtype == np.int8
    assert set(values.tolist()) <= {-1, 0, 1}


@pytest.mark.parametrize("coding", CODES)
def test_a_code_is_of_one_size(coding):
    # More zeros than others, so that the zeros after the last mark have no gap of their own.
    code = ENCODERS[coding](ternary(1000, 0.4))
    for size in (0, 990, *([1010, 2**32 - 1] if coding != "gaps" else [])):
        with pytest.raises(ValueError, match=r"."):
            _ternary.decode(coding, code, size)
    for other in (code[:-1], code + b"\0"):
        with pytest.raises(ValueError, match=r"."):
            _ternary.decode(coding, other, 1000)


def test_a_code_that_would_swell_is_stopped():
    _, options = _ternary._lzma()
    bomb = lzma.compress(bytes(50_000_000), **options)
    assert len(bomb) < 10_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"^LZMA does not give 200 bytes$"):
        _ternary.decode("lzma", bomb, 1000)
    # A number of marks that its bits cannot hold.
    with pytest.raises(ValueError, match=r"^the code of gaps"):
        _ternary.decode("gaps", _gaps._START.pack(False, False, 30, 2**32 - 1) + bytes(100), 2**32 - 1)
    # Marks that are further apart than there are values.
    with pytest.raises(ValueError, match=r"^a gap is too long$"):
        _ternary.decode("gaps", _gaps._START.pack(False, False, 32, 1) + b"\xff" * 5, 2**32 - 1)
    # The window of LZMA is a megabyte.
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_there_is_no_other_code():
    with pytest.raises(ValueError, match=r"^there is no code 'pickle'$"):
        _ternary.decode("pickle", b"", 0)
