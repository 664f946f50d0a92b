"""A sparse file that is damaged or forged is refused by an error that names it, and nothing large is made of it."""

import hashlib
import itertools
import json
import pickle
import struct
import tracemalloc

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax._artifact import _layout, _pieces, _zstd
from flipout_jax._files import _gaps
from flipout_jax.checkpoint import CheckpointError

HOLE = optax.MaskedNode()
RNG = np.random.default_rng(0)
# A scalar, one that is raw, one by gaps, one by a bitmap, one that repeats.
PARAMS = {
    "a": np.float32(3),
    "b": {"bias": RNG.standard_normal(40).astype(np.float32)},
    "c": {"kernel": np.where(RNG.random((30, 30)) < 0.03, RNG.standard_normal((30, 30)), 0).astype(np.float32)},
    "d": {"kernel": np.where(RNG.random((30, 30)) < 0.5, RNG.integers(1, 100, (30, 30)), 0).astype(np.int8)},
    "e": np.full((20, 20), 0.5),
    "f": RNG.random(50) < 0.5,
}
MASKS = {**{name: {"kernel": PARAMS[name]["kernel"] != 0} for name in "cd"}, "a": HOLE, "b": {"bias": HOLE}}
MASKS |= {"e": np.ones((20, 20), bool), "f": np.ones(50, bool)}
LEAF = 2
START = _layout._START


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "network"
    fj.save_sparse(path, PARAMS, MASKS)
    return path.read_bytes()


@pytest.fixture
def file(tmp_path, content):
    (tmp_path / "network").write_bytes(content)
    return tmp_path / "network"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def parts(content):
    """The header, the codes, the index."""
    index = json.loads(content[8:START])["index"]["shape"][0]
    return content[:START], content[START : -32 - index], content[-32 - index : -32]


def join(codes, index, header=None):
    """A file with a digest that fits."""
    header = _layout._header(len(codes), len(index)) if header is None else header
    return header + codes + index + hashlib.sha256(codes + index + header).digest()


def forge(file, change):
    """Changes the index of a file, and makes the header and the digest fit."""
    _, codes, text = parts(file.read_bytes())
    index = json.loads(text)
    changed = change(index)
    changed = index if changed is None else changed
    file.write_bytes(join(codes, changed if isinstance(changed, bytes) else json.dumps(changed).encode()))


def of_one(file, code, shape, dtype="float32", has_mask=False):
    """A file of one leaf, whose code is made by hand."""
    leaf = ["x", dtype, shape, has_mask, len(code)]
    file.write_bytes(join(code, json.dumps({"masks": has_mask, "leaves": [leaf]}).encode()))


def refuse(file, told=r".*", like=None):
    with pytest.raises(CheckpointError, match=rf"(?s)^The sparse file {file} is damaged: {told}\.$"):
        fj.load_sparse(file, like)


@given(st.data())
def test_damage_is_found(folder, content, damage, data):
    path = folder / "network"
    path.write_bytes(content)
    damage(path, data)
    for like in (PARAMS, None):
        refuse(path, like=like)


@given(st.integers(0, START + 200))
def test_every_bit_of_the_header_counts(folder, content, at):
    for bit in range(8):
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        (folder / "network").write_bytes(changed)
        refuse(folder / "network")


@given(st.data())
def test_codes_made_by_hand_are_refused_or_are_values(folder, content, data):
    """With a digest that fits."""
    _, codes, index = parts(content)
    changed = bytearray(codes)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(codes) - 1))] = data.draw(st.integers(0, 255))
    (folder / "network").write_bytes(join(bytes(changed), index))
    try:
        params, masks = fj.load_sparse(folder / "network", PARAMS)
    except CheckpointError:
        # Of which `refuse` finds more to say.
        refuse(folder / "network", like=PARAMS)
        return
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, PARAMS)
    assert masks["f"].tobytes().strip(b"\0\1") == b"" == params["f"].tobytes().strip(b"\0\1")


@given(st.binary(max_size=80), st.sampled_from([[], [0], [3], [40, 2]]), st.sampled_from(["float32", "bool", "int8"]))
def test_other_bytes_are_no_code(folder, code, shape, dtype):
    of_one(folder / "network", code, shape, dtype)
    try:
        params, _ = fj.load_sparse(folder / "network")
    except CheckpointError:
        return
    assert params["x"].shape == tuple(shape)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=12))
def test_any_index_is_refused(folder, content, value):
    path = folder / "network"
    for change in (
        lambda index: json.dumps(value).encode(),
        lambda index: index.update(leaves=value),
        lambda index: index["leaves"].insert(0, value),
        lambda index: index["leaves"][LEAF].__setitem__(4, value),
    ):
        path.write_bytes(content)
        forge(path, change)
        refuse(path)


@example([896])
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=12))
def test_any_shape_is_refused_or_is_that_of_the_leaf(folder, content, value):
    path = folder / "network"
    path.write_bytes(content)
    forge(path, lambda index: index["leaves"][LEAF].__setitem__(2, value))
    try:
        params, _ = fj.load_sparse(path)
    except CheckpointError:
        return
    # One that differs by zeros at the end alone is a file that somebody may have written.
    kernel, flat = np.asarray(params["c/kernel"]), PARAMS["c"]["kernel"].ravel()
    assert kernel.shape == tuple(value)
    size = min(kernel.size, flat.size)
    np.testing.assert_array_equal(kernel.ravel()[:size], flat[:size])
    assert not kernel.ravel()[size:].any()
    assert not flat[size:].any()


WRONG = {
    "no fields": lambda index: [],
    "a field too many": lambda index: index.update(more=1),
    "a field missing": lambda index: {"leaves": index["leaves"]},
    "no JSON": lambda index: b"{",
    "no text": lambda index: b"\xff",
    "deep": lambda index: b"[" * 100_000,
    "deep in a leaf": lambda index: b'{"masks":true,"leaves":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a long number": lambda index: b'{"masks": ' + b"9" * 5000 + b"}",
    "masks of a number": lambda index: index.update(masks=1),
    "no masks": lambda index: index.update(masks=False),
    "leaves": lambda index: index.update(leaves={}),
    "a leaf of text": lambda index: index["leaves"].append("leaf"),
    "a leaf of five letters": lambda index: index["leaves"].append("leaf5"),
    "a leaf of a number": lambda index: index["leaves"].append(3),
    "a leaf too few": lambda index: index["leaves"].__delitem__(0),
    "a leaf twice": lambda index: index["leaves"].append(index["leaves"][LEAF]),
    "name": lambda index: index["leaves"][LEAF].__setitem__(0, 1),
    "dtype of no name": lambda index: index["leaves"][LEAF].__setitem__(1, [1]),
    "objects": lambda index: index["leaves"][LEAF].__setitem__(1, "object"),
    "structures": lambda index: index["leaves"][LEAF].__setitem__(1, "i4,i4"),
    "text": lambda index: index["leaves"][LEAF].__setitem__(1, "<U4"),
    "a date": lambda index: index["leaves"][LEAF].__setitem__(1, "datetime64[s]"),
    "another width": lambda index: index["leaves"][LEAF].__setitem__(1, "float16"),
    "another shape": lambda index: index["leaves"][LEAF].__setitem__(2, [10, 10]),
    "a larger shape": lambda index: index["leaves"][LEAF].__setitem__(2, [3000, 3000]),
    "a shape below 0": lambda index: index["leaves"][LEAF].__setitem__(2, [-30, -30]),
    "a shape of truth": lambda index: index["leaves"][LEAF].__setitem__(2, [True, 900]),
    "a shape of floats": lambda index: index["leaves"][LEAF].__setitem__(2, [30.0, 30.0]),
    "too large": lambda index: index["leaves"][LEAF].__setitem__(2, [2**31, 2**31]),
    "too large and empty": lambda index: index["leaves"][LEAF].__setitem__(2, [0, 2**31, 2**31]),
    "too many axes": lambda index: index["leaves"][LEAF].__setitem__(2, [1] * 100),
    "a mask of a number": lambda index: index["leaves"][LEAF].__setitem__(3, 1),
    "no mask": lambda index: index["leaves"][LEAF].__setitem__(3, None),
    "a length below 0": lambda index: index["leaves"][LEAF].__setitem__(4, -1),
    "a length of 0": lambda index: index["leaves"][LEAF].__setitem__(4, 0),
    "a length too large": lambda index: index["leaves"][LEAF].__setitem__(4, 2**61),
    "lengths that make up for each other": lambda index: index["leaves"].__setitem__(
        slice(LEAF, LEAF + 2),
        [[*leaf[:4], leaf[4] + i] for leaf, i in zip(index["leaves"][LEAF:], (1, -1), strict=False)],
    ),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_an_index_made_by_hand_is_refused(file, change):
    forge(file, change)
    refuse(file)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"data_offsets":[0,', '"data_offsets":[1,'),
        ('"index"', '"codes"'),
        ('"sha256":{"dtype":"U8","shape":[32]', '"sha256":{"dtype":"U8","shape":[99]'),
        ('"dtype":"U8"', '"dtype":"F8"'),
        ("  ", " x"),
        ("flipout_jax sparse file", "flipout_jax sparse life"),
    ],
)
def test_a_header_made_by_hand_is_refused(file, old, new):
    """Such as one of tensors that overlap, or lie outside of the file."""
    header, codes, index = parts(file.read_bytes())
    assert old in header.decode("latin1")
    file.write_bytes(join(codes, index, header.decode("latin1").replace(old, new, 1).encode("latin1")))
    refuse(file, r"it(s header| does not start).*")


@pytest.mark.parametrize("lengths", [(0, 0), (10**15, 10), (10, 10**15), (9, 0)])
def test_lengths_that_are_not_of_the_file_are_refused(file, lengths):
    _, codes, index = parts(file.read_bytes())
    file.write_bytes(join(codes, index, _layout._header(*lengths)))
    refuse(file, r"it has \d+ bytes, and its header says \d+")


def test_other_versions_and_other_files_are_told(file):
    content = file.read_bytes()
    header, codes, index = parts(content)
    file.write_bytes(join(codes, index, header.replace(b'"version":"1"', b'"version":"2"')))
    refuse(file, r"its format has version 2, and this flipout_jax reads version 1")
    dense = safetensors.numpy.save({"kernel": np.ones(100, np.float32)})
    for other in (pickle.dumps(PARAMS["e"]), b"", content[:23], content[1:], dense, bytes(1000)):
        file.write_bytes(other)
        refuse(file, r"it does not start as the sparse files of flipout_jax do")


def test_names_are_only_compared(file):
    for name in ("../../x", "/etc/x", "\0", "x" * 100_000, "[" * 10_000, "C:\\x", "__metadata__", ""):
        of_one(file, _zstd_code(np.zeros(3, np.float32)), [3])
        forge(file, lambda index, name=name: index["leaves"][0].__setitem__(0, name))
        assert list(fj.load_sparse(file)[0]) == [name]
        with pytest.raises(ValueError, match=r"^`like` must have the leaves that were saved, got 'kernel' where "):
            fj.load_sparse(file, {"kernel": np.zeros(3, np.float32)})
        assert [entry.name for entry in file.parent.iterdir()] == ["network"]


def _zstd_code(array, mask=None):
    return b"".join(itertools.starmap(_pieces.encode, _pieces.split(array, mask)))


def peak(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def frame(raw, **options):
    code = zstandard.ZstdCompressor(**options).compress(raw)
    return _lengthened(2 * len(code) + 1) + code


def _lengthened(number):
    digits = [number >> 7 * i & 127 for i in range(max(1, -(-number.bit_length() // 7)))]
    return bytes([digit | 128 for digit in digits[:-1]] + digits[-1:])


def test_nothing_is_made_that_is_larger_than_expected(file):
    # A frame of 100 MB in 10 kB, for 10 numbers: in all places where there may be one.
    bomb = frame(bytes(100_000_000))
    assert len(bomb) < 20_000
    dense, bitmap, gaps, planes = 0, 1, 2, 16
    for form in (dense, bitmap, gaps, planes, bitmap << 2, gaps << 2):
        of_one(file, bytes([form]) + bomb, [10], has_mask=True)
        assert peak(lambda: refuse(file, r"a frame of zstandard has 100000000 bytes, not at most \d+")) < 500_000
    # One that does not say how large it is.
    of_one(file, b"\0" + frame(bytes(100_000_000), compression_params=zstandard.ZstdCompressionParameters.from_level(
        3, write_content_size=False)), [10])  # fmt: skip
    assert peak(lambda: refuse(file, r"a frame of zstandard has \d+ bytes, not at most 40")) < 500_000
    # Arrays and lengths that the bytes cannot be of.
    of_one(file, b"\0\0", [2**28])
    assert peak(lambda: refuse(file, r"the code of 'x' has no length, or is too short")) < 500_000
    of_one(file, bytes([gaps]) + _lengthened(14) + _gaps._START.pack(False, False, 30, 2**32 - 1) + b"\0", [1000])
    assert peak(lambda: refuse(file, r"the code of gaps has a wrong start")) < 500_000
    of_one(file, b"\0" + _lengthened(2 * 2**31) + b"\0", [1000])
    assert peak(lambda: refuse(file, r"a code is cut off")) < 500_000
    # An array of which nobody has told the size.
    of_one(file, bytes(2000), [2**16, 2**15])
    with pytest.raises(ValueError, match=r"^`like` must be given for more than 268435456 numbers, .* 2147483648"):
        assert peak(lambda: fj.load_sparse(file)) < 0
    with pytest.raises(ValueError, match=r"^`like` must have the shapes .* float32\[4\] for 'x', which was"):
        fj.load_sparse(file, {"x": np.zeros(4, np.float32)})


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (b"", r"the code of 'x' has no length, or is too short"),
        (b"\x00", r"a code is cut off"),
        (b"\x00\x80\x80\x80\x80\x80\x00", r"a code is cut off"),
        (b"\x00" + _zstd.put(np.zeros(9, np.uint8)), r"a stream has 9 bytes, not 10 to 10"),
        (b"\x00" + _zstd.put(np.zeros(11, np.uint8)), r"a stream has 11 bytes, not 10 to 10"),
        (b"\x00" + _zstd.put(np.zeros(10, np.uint8)) + b"\0", r"a code has 13 bytes, of which 12 are used"),
        (b"\x20" + _zstd.put(np.zeros(10, np.uint8)), r"there is no such form of a code"),
        (b"\x03" + _zstd.put(np.zeros(10, np.uint8)), r"there is no such code of a pattern"),
        (b"\x04" + _zstd.put(np.zeros(2, np.uint8)) * 2, r"there is no such form of a code"),
        (b"\x01" + _zstd.put(np.full(2, 255, np.uint8)), r"there are not exactly 10 bits"),
        (b"\x02" + _zstd.put(np.zeros(3, np.uint8)), r"the code of gaps is cut off"),
        (
            b"\x02" + _zstd.put(np.frombuffer(_gaps.encode(np.array([0, -1] + [0] * 8, np.int8)), np.uint8)),
            r"a pattern has signs",
        ),
        (b"\x00" + _zstd.put(np.full(10, 2, np.uint8)), r"a boolean is neither 0 nor 1"),
        (b"\x00\x09\x00\x00\x00\x00", r"zstandard says: .*"),
        (b"\x00" + _lengthened(2 * 10 + 1) + bytes(10), r"zstandard says: .*"),
        (
            b"\x00" + _lengthened(2 * 12 + 1) + struct.pack("<II4s", 0x184D2A50, 4, b"skip"),
            r".*(zstandard says|a stream has 0 bytes).*",
        ),
    ],
)
def test_a_code_made_by_hand_is_refused(file, code, told):
    of_one(file, code, [10], "bool")
    refuse(file, told)


def test_a_frame_is_one_and_whole(file):
    whole = zstandard.ZstdCompressor().compress(bytes(100))
    for other in (whole + b"\0", whole * 2, whole[:-1], whole[:9]):
        of_one(file, b"\x00" + _lengthened(2 * len(other) + 1) + other, [100], "int8")
        refuse(file, r"zstandard says: .*")
    of_one(file, b"\x00" + _lengthened(2 * len(whole) + 1) + whole, [100], "int8")
    assert not fj.load_sparse(file)[0]["x"].any()


def test_a_file_that_changes_while_it_is_read_is_refused(file, monkeypatch):
    """As the digest is that of a first reading."""
    read = _layout.read

    def cut_after(stream):
        index = read(stream)
        with file.open("r+b") as other:
            other.truncate(START + 100)
        return index

    monkeypatch.setattr(_layout, "read", cut_after)
    refuse(file)
