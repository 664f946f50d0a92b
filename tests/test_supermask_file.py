"""A network of frozen weights in one file: every bit comes back, in few bytes, or the error says what is wrong."""

import hashlib
import json
import os
import pickle
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax.checkpoint import CheckpointError
from flipout_jax.reparam import _artifact_bytes

KEY = jax.random.key(7)
freeze = fj.reparam.signed_constant
# Few, as each is compiled once.
SHAPES = [(0, 3), (1, 1), (3, 4), (2, 3, 4, 5), (30, 29)]
PARAMS = {
    "a": {"bias": jnp.array([0.1, -0.0, 1e-40, 3.0]), "kernel": jnp.ones((3, 4))},
    "b": {"kernel": jnp.ones((4, 2))},
}


def masks_of(params, kept=0.5, seed=0, dtype="int8"):
    """Masks where there are kernels, and the other leaves as they are."""
    rng = np.random.default_rng(seed)

    def mask(path, leaf):
        if not fj.kernels(path, leaf):
            return leaf
        values = rng.choice([-1, 1] if dtype == "int8" else [1], leaf.shape)
        return jnp.asarray(np.where(rng.random(leaf.shape) < kept, values, 0).astype(dtype))

    return jax.tree_util.tree_map_with_path(mask, params)


def effective(frozen, masks):
    return jax.tree.map(lambda w, m: w * m.astype(w.dtype) if m.dtype == jnp.int8 else w, frozen, masks)


@pytest.fixture
def file(tmp_path):
    """A file, of `PARAMS`."""
    fj.reparam.save(tmp_path / "network", KEY, masks_of(PARAMS))
    return tmp_path / "network"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The same, for tests that are run for each example of Hypothesis."""
    path = tmp_path_factory.mktemp("written") / "network"
    fj.reparam.save(path, KEY, masks_of(PARAMS))
    return path


def forge(file, change):
    """Changes the header of a file, and makes the digest fit."""
    data = file.read_bytes()
    start = len(_artifact_bytes._MAGIC) + _artifact_bytes._START.size
    _, length = _artifact_bytes._START.unpack_from(data, len(_artifact_bytes._MAGIC))
    header = json.loads(data[start : start + length])
    changed = change(header)
    header = header if changed is None else changed
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    write_digested(file, header, data[start + length : -32])


def write_digested(file, header, codes, version=1):
    data = _artifact_bytes._MAGIC + _artifact_bytes._START.pack(version, len(header)) + header + codes
    file.write_bytes(data + hashlib.sha256(data).digest())


@given(
    st.lists(st.tuples(st.sampled_from(SHAPES), st.floats(0, 1)), min_size=1, max_size=4),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from(["int8", "bool"]),
    st.sampled_from([{}, {"scale": 2}, {"scale": 1.0, "mode": "fan_avg"}, {"in_axis": 1, "out_axis": 0}]),
    st.integers(0, 2**32 - 1),
)
def test_every_bit_comes_back(tmp_path_factory, assert_same, shapes, dtype, mask_dtype, options, seed):
    path = tmp_path_factory.mktemp("round") / "network"
    params = [{"kernel": jnp.ones(shape, dtype), "scale": jnp.full((2,), seed % 100, dtype)} for shape, _ in shapes]
    masks = [
        {**masks_of(leaf, kept, seed + i, mask_dtype), "steps": np.int32(i)}
        for i, (leaf, (_, kept)) in enumerate(zip(params, shapes, strict=True))
    ]
    like = [{**leaf, "steps": np.int32(0)} for leaf in params]
    key = jax.random.key(seed)
    size = fj.reparam.save(path, key, masks, dtype=dtype, **options)
    assert path.stat().st_size == size
    assert [entry.name for entry in path.parent.iterdir()] == ["network"]
    frozen, loaded = fj.reparam.load(path, like)
    assert_same(loaded, masks)
    assert_same(frozen, [{**leaf, "steps": np.int32(i)} for i, leaf in enumerate(freeze(key, params, **options))])
    by_path = fj.reparam.load(path)
    for tree, flat in zip((frozen, masks), by_path, strict=True):
        assert_same({fj.path_string(name): np.asarray(x) for name, x in jax.tree.leaves_with_path(tree)}, flat)


def test_weights_of_float64_come_back_where_jax_has_none(tmp_path, assert_same):
    masks = {"kernel": np.ones((3, 4), np.int8)}
    fj.reparam.save(tmp_path / "network", KEY, masks, dtype="float64", scale=5)
    frozen, loaded = fj.reparam.load(tmp_path / "network", {"kernel": np.zeros((3, 4))})
    signs = np.sign(np.float64(freeze(KEY, {"kernel": jnp.zeros((3, 4))})["kernel"]))
    assert_same(frozen, {"kernel": signs * np.sqrt(np.float64(5 / 3))})
    assert_same(loaded, masks)


def test_a_network_predicts_the_same(tmp_path, assert_same):
    model = nnx.Sequential(
        nnx.Conv(1, 4, (3, 3), use_bias=False, rngs=nnx.Rngs(0)),
        nnx.elu,
        nnx.Linear(4, 3, rngs=nnx.Rngs(1)),
    )
    graph, params = nnx.split(model, nnx.Param)
    frozen, masks = freeze(KEY, params), masks_of(params)
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 1))
    predict = jax.jit(lambda params: nnx.merge(graph, params)(x))
    fj.reparam.save(tmp_path / "network", KEY, masks)
    for like in (params, jax.eval_shape(lambda: params), frozen):
        loaded = fj.reparam.load(tmp_path / "network", like)
        assert_same(loaded, (frozen, masks))
    assert_same(predict(effective(*loaded)), predict(effective(frozen, masks)))


def test_arrays_go_where_those_of_like_are(file):
    device = jax.devices()[0]
    for like, committed in ((PARAMS, False), (jax.device_put(PARAMS, device), True)):
        for tree in fj.reparam.load(file, like):
            assert all(leaf.committed == committed for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("kept", [1.0, 0.6, 0.2, 0.04, 0.006])
def test_a_file_is_as_small_as_its_masks(tmp_path, kept):
    """784-300-100-10, of 266,200 weights: those of a float32 file take a megabyte."""
    shapes = [(784, 300), (300, 100), (100, 10)]
    params = {f"dense{i}": {"kernel": jnp.zeros(shape)} for i, shape in enumerate(shapes)}
    size = fj.reparam.save(tmp_path / "network", KEY, masks_of(params, kept))
    weights = 266_200
    entropy = kept - sum(p * np.log2(p) for p in (kept, 1 - kept) if p)
    assert 8 * size <= weights * min(1.6, 1.03 * entropy) + 8 * 1000
    if kept == 0.04:
        assert size <= 4 * weights / 90


@given(st.data())
def test_damage_is_found(written, damage, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "network"
    path.write_bytes(written.read_bytes())
    damage(path, data)
    for like in (PARAMS, None):
        with pytest.raises(CheckpointError, match=rf"^The supermask file {path} is damaged: .*\.$"):
            fj.reparam.load(path, like)


def test_other_weights_are_never_given(file):
    """Another key, other options, and another generator, whatever the digest of the file."""
    changes = [
        lambda header: header["key"].__setitem__(1, 8),
        lambda header: header["options"].update(scale=2.0),
        lambda header: header["options"].update(mode="fan_avg"),
        lambda header: header["options"].update(in_axis=1, out_axis=0),
        lambda header: header.update(impl="rbg", key=[0, 7, 0, 7]),
    ]
    content = file.read_bytes()
    for change in changes:
        forge(file, change)
        with pytest.raises(CheckpointError, match=r"cannot be read by this JAX .* gives other weights"):
            fj.reparam.load(file, PARAMS)
        file.write_bytes(content)
    with (
        jax.threefry_partitionable(not jax.config.jax_threefry_partitionable),
        pytest.raises(CheckpointError, match=r"gives other weights.*jax_threefry_partitionable"),
    ):
        fj.reparam.load(file, PARAMS)
    fj.reparam.load(file, PARAMS)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_other_generators(tmp_path, assert_same, impl):
    key = jax.random.key(3, impl=impl)
    fj.reparam.save(tmp_path / "network", key, masks_of(PARAMS))
    assert_same(fj.reparam.load(tmp_path / "network", PARAMS)[0], freeze(key, PARAMS))


LEAF = 2
WRONG = {
    "no fields": lambda header: [],
    "a field too many": lambda header: header.update(more=1),
    "a field missing": lambda header: {name: header[name] for name in list(header)[1:]},
    "no JSON": lambda header: b"{",
    "no text": lambda header: b"\xff",
    "deep": lambda header: b"[" * 100_000,
    "a long number": lambda header: b'{"jax": ' + b"9" * 5000 + b"}",
    "jax": lambda header: header.update(jax=1),
    "impl of no text": lambda header: header.update(impl=[]),
    "key of text": lambda header: header.update(key="ab"),
    "key of floats": lambda header: header.update(key=[0.0, 1.0]),
    "key out of range": lambda header: header.update(key=[-1, 2**32]),
    "dtype": lambda header: header.update(dtype="object"),
    "dtype of whole numbers": lambda header: header.update(dtype="int8"),
    "dtype of no name": lambda header: header.update(dtype=[1]),
    "scale": lambda header: header["options"].update(scale=float("nan")),
    "scale of text": lambda header: header["options"].update(scale="1"),
    "a large scale": lambda header: header["options"].update(scale=10**400),
    "a scale of none": lambda header: header["options"].update(scale=1e300),
    "mode": lambda header: header["options"].update(mode=[]),
    "axis": lambda header: header["options"].update(in_axis=0.5),
    "an axis that is not there": lambda header: header["options"].update(in_axis=5),
    "an option": lambda header: header["options"].update(other=1),
    "options": lambda header: header.update(options=None),
    "leaves": lambda header: header.update(leaves={}),
    "a leaf of text": lambda header: header["leaves"].append("leaf"),
    "a leaf of five letters": lambda header: header["leaves"].append("leaf5"),
    "a leaf of a number": lambda header: header["leaves"].append(3),
    "a leaf too few": lambda header: header["leaves"].pop(),
    "a leaf twice": lambda header: header["leaves"].append(header["leaves"][LEAF]),
    "name": lambda header: header["leaves"][LEAF].__setitem__(0, 1),
    "another shape": lambda header: header["leaves"][LEAF].__setitem__(1, [4, 200]),
    "a shape below 0": lambda header: header["leaves"][LEAF].__setitem__(1, [-4, -2]),
    "a shape of truth": lambda header: header["leaves"][LEAF].__setitem__(1, [True, 8]),
    "a shape of floats": lambda header: header["leaves"][LEAF].__setitem__(1, [4.0, 2.0]),
    "no shape": lambda header: header["leaves"][LEAF].__setitem__(1, None),
    "too large": lambda header: header["leaves"][LEAF].__setitem__(1, [2**31, 2**31]),
    "too large and empty": lambda header: header["leaves"][LEAF].__setitem__(1, [0, 2**31, 2**31]),
    "too many axes": lambda header: header["leaves"][LEAF].__setitem__(1, [1] * 100),
    "a mask of floats": lambda header: header["leaves"][LEAF].__setitem__(2, "float32"),
    "signs of a bool": lambda header: header["leaves"][LEAF].__setitem__(2, "bool"),
    "coding": lambda header: header["leaves"][LEAF].__setitem__(3, "pickle"),
    "another coding": lambda header: header["leaves"][LEAF].__setitem__(3, "lzma"),
    "no coding": lambda header: header["leaves"][LEAF].__setitem__(3, []),
    "a length below 0": lambda header: header["leaves"][LEAF].__setitem__(4, -1),
    "a length too large": lambda header: header["leaves"][LEAF].__setitem__(4, 2**62),
    "a length of no number": lambda header: header["leaves"][LEAF].__setitem__(4, "2"),
    "raw of objects": lambda header: header["leaves"][0].__setitem__(2, "object"),
    "raw of structures": lambda header: header["leaves"][0].__setitem__(2, "i4,i4"),
    "raw of text": lambda header: header["leaves"][0].__setitem__(2, "<U4"),
    "raw of bytes": lambda header: header["leaves"][0].__setitem__(2, "V4"),
    "raw of a date": lambda header: header["leaves"][0].__setitem__(2, "datetime64[s]"),
    "raw of another width": lambda header: header["leaves"][0].__setitem__(2, "float16"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_header_made_by_hand_is_refused(file, change):
    forge(file, change)
    with pytest.raises(CheckpointError, match=rf"^The supermask file {file} is damaged: .*\.$"):
        fj.reparam.load(file)


def test_a_generator_that_nobody_knows_is_told(file):
    for change in ({"impl": "dice"}, {"key": [1, 2, 3]}, {"key": []}):
        content = file.read_bytes()
        forge(file, lambda header, change=change: header.update(change))
        with pytest.raises(CheckpointError, match=r"has a key of the generator '.*', which this JAX .* does not make"):
            fj.reparam.load(file)
        file.write_bytes(content)


def test_another_version_and_other_files_are_told(file):
    data = file.read_bytes()
    write_digested(file, b"{}", b"", version=2)
    with pytest.raises(CheckpointError, match=r"its format has version 2, and this flipout_jax reads version 1\.$"):
        fj.reparam.load(file)
    for other in (pickle.dumps({"kernel": 1}), b"", data[:23], data[1:]):
        file.write_bytes(other)
        with pytest.raises(CheckpointError, match=r"is damaged: it (does not start as|is cut off)"):
            fj.reparam.load(file)
    for path in (file.parent / "nothing", file.parent):
        with pytest.raises(CheckpointError, match=rf"^There is no supermask file {path}\.$"):
            fj.reparam.load(path)


def test_nothing_is_made_that_is_larger_than_expected(file):
    """Zeros that LZMA has made a thousand times shorter, or that no bits say: 2**31 of them."""

    def large(header):
        header["leaves"][LEAF][1] = [2**16, 2**15]

    forge(file, large)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"^`like` must have the shapes .* float32\[4, 2\] for 'b/kernel', which was"):
        fj.reparam.load(file, PARAMS)
    with pytest.raises(ValueError, match=r"^`like` must be given for more than 268435456 numbers, .* 2147483664"):
        fj.reparam.load(file)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_another_tree_is_told(file):
    for like, told in (
        ({"a": PARAMS["a"]}, r"the leaves that were saved, got nothing where 'b/kernel' was"),
        ({**PARAMS, "c": jnp.ones(2)}, r"the leaves that were saved, got 'c' where nothing was"),
        ({**PARAMS, "b": {"kernel": jnp.ones((2, 4))}}, r"the shapes and dtypes .* got float32\[2, 4\] for 'b/kernel'"),
        ({**PARAMS, "b": {"kernel": jnp.ones((4, 2), jnp.float16)}}, r"the shapes and dtypes .* got float16\[4, 2\]"),
        (masks_of(PARAMS), r"the shapes and dtypes .* got int8\[3, 4\] for 'a/kernel', which was float32"),
    ):
        with pytest.raises(ValueError, match=rf"^`like` must have {told}"):
            fj.reparam.load(file, like)


def test_paths_are_never_names_of_files(tmp_path, assert_same):
    masks = {"../../etc": {"kernel": jnp.ones((3, 4), jnp.int8)}, "/\0\n": jnp.ones(2)}
    fj.reparam.save(tmp_path / "network", KEY, masks)
    assert sorted(fj.reparam.load(tmp_path / "network")[1]) == ["../../etc/kernel", "/\0\n"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["network"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_save_that_fails_leaves_what_was_there(file, monkeypatch, assert_same, function):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(CheckpointError, match=rf"^The supermask file {file} cannot be written: No space left on"):
            fj.reparam.save(file, KEY, masks_of(PARAMS, seed=1))
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == ["network"]
    fj.reparam.save(file, KEY, masks_of(PARAMS, seed=1))
    assert_same(fj.reparam.load(file, PARAMS)[1], masks_of(PARAMS, seed=1))


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be written: No such file or directory\.$"):
        fj.reparam.save(tmp_path / "nothing" / "network", KEY, masks_of(PARAMS))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", 0),
        ("scale", -1),
        ("mode", "he"),
        ("in_axis", 4),
        ("out_axis", "1"),
        ("dtype", "int8"),
        ("dtype", "half a byte"),
    ],
)
def test_wrong_arguments_are_told(tmp_path, name, value, raises):
    arguments = {"path": tmp_path / "network", "key": KEY, "masks": masks_of(PARAMS), name: value}
    with raises(name, value):
        fj.reparam.save(**arguments)
    assert not any(tmp_path.iterdir())


def test_wrong_masks_are_told(tmp_path, raises):
    path = tmp_path / "network"
    with raises("path", str(tmp_path)):
        fj.reparam.save(tmp_path, KEY, masks_of(PARAMS))
    for masks, told in (
        ({"kernel": jnp.full((2, 2), 5, jnp.int8)}, r"hold -1, 0 and 1, got 5 in 'kernel'"),
        ({"kernel": jnp.full((2, 2), -128, jnp.int8)}, r"hold -1, 0 and 1, got -128 in 'kernel'"),
        ({"kernel": jnp.ones((2, 2))}, r"hold an int8 or bool array, got \['float32'\]"),
        ({}, r"hold an int8 or bool array, got \[\]"),
        ({"kernel": 1}, r"hold arrays, got 1"),
        ({"key": KEY}, r"hold numbers, fewer than 2\*\*32 a leaf, got key<fry>\[\] for 'key'"),
    ):
        with pytest.raises(ValueError, match=rf"^`masks` must {told}"):
            fj.reparam.save(path, KEY, masks)
    assert not path.exists()
