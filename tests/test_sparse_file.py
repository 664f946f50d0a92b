"""A pruned network in one file: every bit comes back, in about as few bytes as there can be."""

import io
import os
import sys
import tracemalloc

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from hypothesis import example, given
from hypothesis import strategies as st

import experiments.models
import flipout_jax as fj
from flipout_jax import _holes, _in_threads
from flipout_jax._artifact import _pieces, _sparse, _zstd
from flipout_jax._files import _gaps
from flipout_jax.checkpoint import CheckpointError

HOLE = optax.MaskedNode()

DTYPES = [
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "complex64",
    "complex128",
    "bool",
    "int4",
    "int8",
    "uint8",
    "int16",
    "int32",
    "uint32",
    "int64",
]
# Those of which safetensors says what it would take.
OF_SAFETENSORS = ["float32", "float16", "bool", "int8", "int64"]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (16, 3), (5, 4, 9)]


def values(shape, dtype, density, kind, seed):
    """Any bits, such as those of a NaN or of -0.0; or a normal distribution; or a few values, or whole columns of 0."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if kind == "bits" and dtype not in ("bool", "int4"):
        array = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    else:
        drawn = np.clip(3 * rng.standard_normal(shape), 0 if dtype.kind == "u" else -8, 7)
        array = np.asarray(np.round(drawn) if kind == "few" else drawn).astype(dtype)
    zero = rng.random(shape[-1:] if kind == "columns" else shape) >= density
    return np.where(zero, np.zeros((), dtype), array)


LEAVES = st.tuples(
    st.sampled_from(SHAPES),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.sampled_from(["bits", "normal", "few", "columns"]),
    st.sampled_from(["none", "tight", "loose"]),
)


def mask_of(array, kind, rng):
    """The mask of an array; one that is loose keeps zeros too."""
    if kind == "none":
        return HOLE
    with np.errstate(invalid="ignore"):
        live = array.astype(bool)
    return live if kind == "tight" else np.asarray(live | (rng.random(array.shape) < 0.3))


def by_path(tree):
    leaves = _holes.leaves_with_path(tree)
    return {fj.path_string(path): leaf if _holes.is_hole(leaf) else np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sparse")


@given(st.lists(LEAVES, max_size=4), st.booleans(), st.integers(0, 2**32 - 1))
@example([((), "bfloat16", 1.0, "bits", "none")], True, 0)
def test_every_bit_comes_back(folder, assert_same, leaves, with_masks, seed):
    path, rng = folder / "network", np.random.default_rng(seed)
    params = {f"layer{i}": [values(*leaf[:4], seed + i)] for i, leaf in enumerate(leaves)}
    kinds = {f"layer{i}": [leaf[4]] for i, leaf in enumerate(leaves)}
    masks = jax.tree.map(lambda x, kind: mask_of(x, kind, rng), params, kinds) if with_masks else None
    size = fj.save_sparse(path, params, masks)
    assert path.stat().st_size == size
    assert [entry.name for entry in folder.iterdir()] == ["network"]
    assert_same(fj.load_sparse(path, params), (params, masks))
    assert_same(fj.load_sparse(path), (by_path(params), by_path(masks) if with_masks else None))
    # Any reader of the format opens it.
    tensors = safetensors.numpy.load_file(path)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == dict.fromkeys(("codes", "index", "sha256"), "u1")
    assert sum(tensor.size for tensor in tensors.values()) == size - 352


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*SHAPES, (3000,)]),
            st.sampled_from(OF_SAFETENSORS),
            st.floats(0, 1),
            st.sampled_from(["bits", "normal"]),
            st.sampled_from(["none", "tight", "loose"]),
        ),
        max_size=30,
    ),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@example([], True, 0)
@example([((3000,), "float32", 1.0, "bits", "loose")] * 30, False, 0)
@example([((), "float16", 1.0, "bits", "none")] * 300, True, 0)
def test_a_file_is_never_larger_than_a_dense_one_by_more_than_a_little(folder, leaves, with_masks, seed):
    rng = np.random.default_rng(seed)
    params = {f"é\n{i}": values(*leaf[:4], seed + i) for i, leaf in enumerate(leaves)}
    masks = {name: mask_of(x, leaf[4], rng) for (name, x), leaf in zip(params.items(), leaves, strict=True)}
    bound = len(safetensors.numpy.save(params)) + 400
    if with_masks:
        bound += sum(mask.size / 8 + 8 for mask in jax.tree.leaves(masks))
    assert fj.save_sparse(folder / "network", params, masks if with_masks else None) <= bound


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_leaves_of_several_pieces(folder, assert_same, dtype):
    size = 2 * _pieces.PIECE + 3
    array = np.zeros(size, dtype)
    # Of three forms: few, all, and the last of all.
    array[::1000] = 5
    array[_pieces.PIECE : 2 * _pieces.PIECE] = np.arange(_pieces.PIECE) % 100 - 20
    array[-1] = 1
    params, masks = {"kernel": array}, {"kernel": array != 0}
    fj.save_sparse(folder / "network", params, masks)
    assert_same(fj.load_sparse(folder / "network", params), (params, masks))


def resnet(sparsity):
    """Parameters and statistics of a ResNet-18 with kernels that are random, pruned by magnitude over all layers."""
    made = jax.eval_shape(
        lambda: nnx.state(
            experiments.models.create("resnet18", (32, 32, 3), 10, jax.random.key(0)), (nnx.Param, nnx.BatchStat)
        )
    )
    rng, params = np.random.default_rng(0), {}
    for path, leaf in jax.tree.leaves_with_path(made):
        name = fj.path_string(path)
        if leaf.ndim > 1:
            params[name] = rng.standard_normal(leaf.shape, np.float32) * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
        else:
            params[name] = np.full(leaf.shape, name.endswith(("scale", "var")), np.float32)
    kernels = [name for name, array in params.items() if array.ndim > 1]
    magnitudes = np.abs(np.concatenate([params[name].ravel() for name in kernels]))
    k = int(sparsity * magnitudes.size)
    threshold = np.partition(magnitudes, k)[k]
    for name in kernels:
        params[name][np.abs(params[name]) < threshold] = 0
    assert sum(array.size for array in params.values()) > 11_000_000
    return params, kernels


def quantised(kernel):
    scale = np.maximum(np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127, np.float32(1e-30))
    return {"kernel": np.round(kernel / scale).astype(np.int8), "scale": scale}


def test_a_quarter_of_a_resnet_in_int8_takes_a_twelfth(folder, assert_same):
    dense, kernels = resnet(0.75)
    params = {name: quantised(array) if name in kernels else array for name, array in dense.items()}
    size = fj.save_sparse(folder / "network", params)
    assert size <= sum(4 * array.size for array in dense.values()) / 12
    assert_same(fj.load_sparse(folder / "network", params), (params, None))


def test_a_thousandth_of_a_resnet_takes_a_four_hundredth(folder, assert_same):
    params, kernels = resnet(0.999)
    masks = {name: array != 0 if name in kernels else HOLE for name, array in params.items()}
    size = fj.save_sparse(folder / "network", params, masks)
    assert size <= sum(4 * array.size for array in params.values()) / 800
    assert_same(fj.load_sparse(folder / "network", params), (params, masks))


@pytest.mark.parametrize("density", [0.5, 0.25, 0.016, 0.001])
def test_a_file_comes_near_the_entropy(folder, density):
    """Of where the weights are, and of values that have no pattern."""
    n, rng = 1_000_000, np.random.default_rng(0)
    array = np.where(rng.random(n) < density, rng.integers(1, 2**32, n), 0).astype(np.uint32)
    p = np.count_nonzero(array) / n
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p) + 32 * p
    assert 8 * fj.save_sparse(folder / "network", {"kernel": array}) <= 1.02 * n * entropy + 8 * 600


def test_whole_channels_take_next_to_nothing(folder):
    kept = np.random.default_rng(0).random(512) < 0.5
    mask = np.broadcast_to(kept, (1000, 512))
    size = fj.save_sparse(folder / "network", {"kernel": mask.astype(np.float32)}, {"kernel": mask})
    assert size < mask.size / 500


def test_a_network_comes_back_where_it_was(folder, assert_same):
    model = nnx.Sequential(nnx.Conv(1, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    params = nnx.state(model, nnx.Param)
    masks = jax.tree.map(lambda w: abs(w) > 0.1 if w.ndim > 1 else HOLE, params)
    pruned = fj.apply_masks(params, masks)
    # Without the variables around them, as those of an optimiser state are.
    fj.save_sparse(folder / "network", pruned, nnx.as_pure(masks) if hasattr(nnx, "as_pure") else nnx.pure(masks))
    for like in (params, jax.eval_shape(lambda: params)):
        assert_same(fj.load_sparse(folder / "network", like), (pruned, masks))
    device = jax.devices()[0]
    for like, committed in ((params, False), (jax.device_put(params, device), True)):
        kernel = jax.tree.leaves(fj.load_sparse(folder / "network", like))[1]
        assert kernel.committed == committed
        assert kernel.devices() == {device}


def test_trees_of_any_kind(folder, assert_same):
    x = np.array([[0, 1.5], [0, 0]], np.float32)
    layer = eqx.filter(eqx.nn.Linear(2, 3, key=jax.random.key(0)), eqx.is_inexact_array)
    for params in (x, layer, (x, [x]), {"a": None, "b": {}}, [np.float32(2), jnp.asarray(x)], {"/\0": x, "../../x": x}):
        fj.save_sparse(folder / "network", params)
        assert_same(fj.load_sparse(folder / "network", params)[0], params)
        assert [entry.name for entry in folder.iterdir()] == ["network"]


def test_two_leaves_of_one_name(folder, assert_same):
    params = {"a": {"b": np.ones(2)}, "a/b": np.zeros(3)}
    fj.save_sparse(folder / "network", params)
    assert_same(fj.load_sparse(folder / "network", params), (params, None))
    with pytest.raises(ValueError, match=r"^`like` must be given where two leaves have one name, as 'a/b' here"):
        fj.load_sparse(folder / "network")


def test_names_that_are_no_text(folder, assert_same):
    params = {os.fsdecode(b"\xff"): np.ones(2), "[" * 5000: np.ones(1), '"\\\n': np.ones(3)}
    fj.save_sparse(folder / "network", params)
    assert_same(fj.load_sparse(folder / "network"), (dict(sorted(params.items())), None))


def test_bits_of_other_byte_orders_and_layouts(folder, assert_same):
    # A NaN that signals, a payload, and numbers next to 0.
    bits = np.array([[0x7F800001, 0xFFC12345, 1], [0x80000000, 0x7F800000, 0]], np.uint32)
    array = bits.view(np.float32)
    for other in (array.astype(">f4"), np.asfortranarray(array), np.stack([array, array])[:, ::1][1]):
        fj.save_sparse(folder / "network", {"kernel": other})
        loaded = fj.load_sparse(folder / "network")[0]["kernel"]
        assert loaded.view(np.uint32).tolist() == bits.tolist()


@pytest.mark.makes_nan
def test_a_masked_zero_may_have_a_sign(folder, assert_same):
    """As a product with a mask gives it; and a weight that is kept may be 0 or NaN."""
    params = {"kernel": np.array([-0.0, 0.0, 0.0, np.nan, 2.0], ml_dtypes.bfloat16)}
    masks = {"kernel": np.array([False, False, True, True, True])}
    fj.save_sparse(folder / "network", params, masks)
    assert_same(fj.load_sparse(folder / "network", params), (params, masks))


@pytest.mark.parametrize("value", [0.5, np.nan, 1e-45])
def test_a_masked_weight_that_is_not_0_is_told(tmp_path, value):
    params = {"a": np.zeros(2), "b": {"kernel": np.array([0, value, 3, 0], np.float32)}}
    masks = {"a": HOLE, "b": {"kernel": np.array([False, False, True, False])}}
    told = r"got 1 of 3 masked weights of 'b/kernel' that are not, such as .*apply_masks"
    with pytest.raises(ValueError, match=rf"^`params` must be zero where masked, {told}"):
        fj.save_sparse(tmp_path / "network", params, masks)
    assert not any(tmp_path.iterdir())


PARAMS = {"bias": np.ones(3, np.float32), "kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}
MASKS = {"bias": HOLE, "kernel": PARAMS["kernel"] > 0}


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        ({"kernel": MASKS["kernel"]}, r"the structure of the parameters, got 'kernel' where they have 'bias'"),
        ({**MASKS, "more": True}, r"the structure of the parameters, got 'more' where they have nothing"),
        (
            {**MASKS, "kernel": np.ones((3, 2), bool)},
            r"bool\[2, 3\] or optax\.MaskedNode\(\) for 'kernel', got bool\[3, 2\]",
        ),
        (
            {**MASKS, "kernel": np.ones((2, 3))},
            r"bool\[2, 3\] or optax\.MaskedNode\(\) for 'kernel', got float64\[2, 3\]",
        ),
        ({**MASKS, "bias": True}, r"bool\[3\] or optax\.MaskedNode\(\) for 'bias', got True"),
        ({**MASKS, "bias": False}, r"bool\[3\] or optax\.MaskedNode\(\) for 'bias', got False"),
        ({**MASKS, "bias": np.array(False)}, r"bool\[3\] or optax\.MaskedNode\(\) for 'bias', got array\(False\)"),
        ({**MASKS, "bias": "yes"}, r"bool\[3\] or optax\.MaskedNode\(\) for 'bias', got 'yes'"),
        ({**MASKS, "bias": 1}, r"bool\[3\] or optax\.MaskedNode\(\) for 'bias', got 1"),
    ],
)
def test_wrong_masks_are_told(tmp_path, masks, told):
    with pytest.raises(ValueError, match=rf"^`masks` must (have|hold) {told}"):
        fj.save_sparse(tmp_path / "network", PARAMS, masks)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("leaf", "told"),
    [
        (1.5, r"hold arrays, got 1\.5 at 'kernel'"),
        (jax.nn.relu, r"hold arrays, got .*eqx\.filter"),
        (jax.random.key(0), r"hold arrays of numbers, got key<fry> in a .* for 'kernel'"),
        (np.array(["text"]), r"hold arrays of numbers, got <U4 in a ndarray for 'kernel'"),
        (np.array([None]), r"hold arrays of numbers, got object in a ndarray for 'kernel'"),
        (jax.ShapeDtypeStruct((2,), "float32"), r"hold arrays of numbers, got float32 in a ShapeDtypeStruct"),
    ],
)
def test_wrong_leaves_are_told(tmp_path, leaf, told):
    with pytest.raises(ValueError, match=rf"^`params` must {told}"):
        fj.save_sparse(tmp_path / "network", {"kernel": leaf})
    assert not any(tmp_path.iterdir())


def test_inside_jit_it_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"^`params` must hold arrays of numbers, got float32 in a .*Tracer"):
        jax.jit(lambda x: fj.save_sparse(tmp_path / "network", x))(PARAMS)
    with pytest.raises(ValueError, match=r"^`masks` must hold bool\[3\] .* for 'bias', got JitTracer"):
        jax.jit(lambda m: fj.save_sparse(tmp_path / "network", PARAMS, m))({**MASKS, "bias": np.array(True)})


def test_wrong_paths_are_told(tmp_path, raises):
    with raises("path", str(tmp_path)):
        fj.save_sparse(tmp_path, PARAMS)
    with pytest.raises(CheckpointError, match=r"^The sparse file .* cannot be written: No such file or directory\.$"):
        fj.save_sparse(tmp_path / "nothing" / "network", PARAMS)
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match=rf"^There is no sparse file {path}\.$"):
            fj.load_sparse(path)


def test_another_tree_is_told(folder):
    fj.save_sparse(folder / "network", PARAMS, MASKS)
    for like, told in (
        ({"bias": PARAMS["bias"]}, r"the leaves that were saved, got nothing where 'kernel' was"),
        ({**PARAMS, "kernel": np.ones((3, 2), "f4")}, r"the shapes and dtypes .* got float32\[3, 2\] for 'kernel'"),
        ({**PARAMS, "kernel": np.ones((2, 3), "f2")}, r"the shapes and dtypes .* got float16\[2, 3\] for 'kernel'"),
    ):
        with pytest.raises(ValueError, match=rf"^`like` must have {told}"):
            fj.load_sparse(folder / "network", like)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch, function):
    def full(*_):
        raise OSError(28, "No space left on device")

    file = tmp_path / "network"
    fj.save_sparse(file, PARAMS)
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(CheckpointError, match=rf"^The sparse file {file} cannot be written: No space left on"):
            fj.save_sparse(file, {**PARAMS, "more": np.ones(4)})
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["network"]


def test_a_process_that_fails_gives_its_parts_to_the_others(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(_sparse, "_to_host", lambda leaf: taken.append(leaf) or np.asarray(leaf))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(CheckpointError, match=r"cannot be written"):
        fj.save_sparse(tmp_path / "nothing" / "network", PARAMS)
    assert len(taken) == 2


def test_no_more_than_a_few_pieces_are_held(folder, monkeypatch):
    """Three leaves of 16 MB take no more than one, beside themselves: what two threads need to code one piece each."""
    monkeypatch.setattr(_in_threads, "cpus", lambda: 2)
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal(2**22, np.float32)
    drawn[rng.random(drawn.size) < 0.5] = 0

    def peak(leaves):
        params = {f"layer{i}": drawn for i in range(leaves)}
        tracemalloc.start()
        fj.save_sparse(folder / "network", params)
        saving = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        loaded, _ = fj.load_sparse(folder / "network", params)
        loading = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(loaded) == leaves
        return saving, loading - leaves * drawn.nbytes

    (save_one, load_one), (save_more, load_more) = peak(1), peak(3)
    assert save_one < 120e6
    assert save_more < 120e6
    assert load_more < max(load_one, 0) + drawn.nbytes


def test_the_package_is_needed_for_this_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for call in (lambda: fj.save_sparse(tmp_path / "network", PARAMS), lambda: fj.load_sparse(tmp_path / "network")):
        with pytest.raises(ImportError, match=r'needs? zstandard: pip install "flipout_jax\[artifact\]"\.$'):
            call()


@given(st.binary(max_size=400), st.booleans())
def test_streams_are_as_short_as_they_may_be(raw, again):
    raw = raw * 8 if again else raw
    code = _zstd.put(np.frombuffer(raw, np.uint8))
    back, end = _zstd.take(memoryview(code + b"more"), 0, len(raw), len(raw))
    assert back.tobytes() == raw
    assert end == len(code) <= len(raw) + 2


@given(st.integers(0, 200), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_gaps_are_never_much_longer_than_a_bitmap(size, density, seed):
    """Which is what is expected of them before they are read."""
    pattern = np.random.default_rng(seed).random(size) < density
    assert len(_gaps.encode(pattern.view(np.int8))) <= -(-size // 8) + 8


def test_devices_share_a_leaf_or_have_it_all(folder, assert_same):
    """On one device here; that on several is in the tests of processes and shardings."""
    mesh = jax.make_mesh((1,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = jax.device_put({"kernel": jnp.array([0.0, 3.0])}, sharding)
    masks = {"kernel": params["kernel"] > 0}
    fj.save_sparse(folder / "network", params, masks)
    loaded = fj.load_sparse(folder / "network", params)
    assert_same(loaded, (params, masks))
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(loaded))


def test_what_is_written_is_always_the_same(folder):
    one, other = io.BytesIO(), io.BytesIO()
    for stream in (one, other):
        fj.save_sparse(folder / "network", PARAMS, MASKS)
        stream.write((folder / "network").read_bytes())
    assert one.getvalue() == other.getvalue()
