"""A checkpoint gives back every bit, or says which file is damaged; what was there before stays until it is whole."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax import checkpoint

TREE = {"a": jnp.arange(6.0).reshape(2, 3), "b": [jnp.ones((), bool), jnp.zeros((0, 3)), jax.random.key(7)]}


def everything():
    """Leaves of every kind."""
    dtypes = ("float16", "bfloat16", "float32", "int4", "int8", "uint16", "int32", "complex64", "bool", "float8_e4m3fn")
    arrays = {name: jnp.arange(6).reshape(2, 3).astype(name) for name in dtypes}
    keys = {impl: jax.random.split(jax.random.key(3, impl=impl), 2) for impl in ("threefry2x32", "rbg")}
    special = np.array([np.nan, -np.nan, -0.0, np.inf, 1e-45], np.float32)
    numbers = {"int": 2**40, "float": 0.1, "bool": True, "numpy": np.float64(0.1), "float64": np.arange(3.0)}
    return {"arrays": arrays, "keys": keys, "empty": jnp.zeros((3, 0)), "special": special, **numbers, "none": None}


def pruner():
    key = jax.random.key(1)
    return fj.flipout(optax.sgd(0.05, momentum=0.9), fj.schedules.geometric(0.9, begin=2, end=8, prunings=3), key=key)


def test_every_leaf_comes_back_bit_for_bit(tmp_path, assert_same):
    tree = everything()
    checkpoint.save(tmp_path, 0, tree).result()
    restored = checkpoint.restore(tmp_path, tree).tree
    assert_same(restored, tree)
    assert [type(leaf) for leaf in jax.tree.leaves(restored)] == [type(leaf) for leaf in jax.tree.leaves(tree)]
    by_name = checkpoint.restore(tmp_path).tree
    np.testing.assert_array_equal(by_name["arrays/bfloat16"], tree["arrays"]["bfloat16"])
    np.testing.assert_array_equal(by_name["keys/rbg"], jax.random.key_data(tree["keys"]["rbg"]))


def test_shapes_without_values_are_enough_to_restore(tmp_path, assert_same):
    tree = {"w": jnp.ones((2, 3), jnp.bfloat16), "key": jax.random.key(0, impl="rbg")}
    checkpoint.save(tmp_path, 0, tree).result()
    assert_same(checkpoint.restore(tmp_path, jax.eval_shape(lambda: tree)).tree, tree)
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    checkpoint.save(tmp_path, 1, state).result()
    nnx.update(other := nnx.Linear(3, 2, rngs=nnx.Rngs(5)), checkpoint.restore(tmp_path, state).tree)
    np.testing.assert_array_equal(other.kernel[...], model.kernel[...])


def test_a_restored_run_equals_one_that_was_not_stopped(tmp_path, assert_same):
    optimizer = pruner()

    @jax.jit
    def step(params, state, i):
        grads = jax.tree.map(lambda w: jnp.sin(w * 9 + i), params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def train(params, state, steps):
        for i in steps:
            params, state = step(params, state, jnp.float32(i))
        return params, state

    params = {"kernel": jax.random.normal(jax.random.key(0), (7, 5)), "bias": jnp.ones(5)}
    start = params, optimizer.init(params)
    whole = train(*start, range(10))
    for stop in range(10):
        checkpoint.save(tmp_path, stop, train(*start, range(stop)), metadata={"next": stop}).result()
        saved = checkpoint.restore(tmp_path, start)
        assert_same(train(*saved.tree, range(saved.metadata["next"], 10)), whole)


def test_what_is_saved_may_be_donated_at_once(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    arrays = [jnp.full((500, 500), float(i)) for i in range(4)]
    saves = []
    for i, array in enumerate(arrays):
        saves.append(checkpoint.save(tmp_path, i, {"x": array}, keep=4))
        overwrite(array).block_until_ready()
    for i, save in enumerate(saves):
        assert save.result() == tmp_path / str(i)
        assert (checkpoint.restore(tmp_path, step=i).tree["x"] == i).all()


def test_a_save_returns_before_anything_is_written(tmp_path):
    release = threading.Event()
    checkpoint._WRITER.submit(release.wait)
    save = checkpoint.save(tmp_path, 1, TREE)
    assert not save.done()
    assert checkpoint.steps(tmp_path) == []
    release.set()
    assert save.result() == tmp_path / "1"


def test_the_newest_and_the_best_stay(tmp_path):
    for step, score in enumerate([0.2, 0.9, None, 0.9, 0.1, None, 0.3]):
        checkpoint.save(tmp_path, step, TREE, score=score, keep=2).result()
    assert checkpoint.steps(tmp_path) == [3, 5, 6]
    assert checkpoint.best(tmp_path) == 3
    assert checkpoint.restore(tmp_path, TREE).step == 6
    assert checkpoint.best(tmp_path / "nothing") is None
    assert checkpoint.steps(tmp_path / "nothing") == []


def test_one_of_the_same_number_is_replaced(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, 3, {"x": jnp.full(2, value)}).result()
    assert checkpoint.restore(tmp_path).tree["x"].tolist() == [2.0, 2.0]
    assert [file.name for file in tmp_path.iterdir()] == ["3"]


@pytest.mark.slow
def test_a_save_that_fails_leaves_what_was_there(tmp_path, assert_same):
    """The limit on a file's size is a disk that is full for one process."""
    checkpoint.save(tmp_path, 1, TREE).result()
    program = f"""
import resource, jax, flipout_jax as fj
array = jax.random.normal(jax.random.key(0), (300, 300))
fj.checkpoint.save({str(tmp_path)!r}, 2, {{"x": array[:2]}}).result()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    fj.checkpoint.save({str(tmp_path)!r}, 3, {{"x": array}}).result()
except fj.checkpoint.CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"The checkpoint {tmp_path / '3'} cannot be written: File too large.\n"
    assert done.stderr == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1", "2"]
    assert_same(checkpoint.restore(tmp_path, TREE, step=1).tree, TREE)


@pytest.mark.slow
def test_a_program_that_ends_before_its_save_says_so(tmp_path):
    program = f"""
import jax.numpy as jnp, flipout_jax as fj
fj.checkpoint.save({str(tmp_path)!r}, 1, {{"x": jnp.ones((2000, 2000))}})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # It may be quick enough.
    assert checkpoint.steps(tmp_path) == [1] or "Wait for `result()` of the last save" in done.stderr


def test_what_a_dead_program_left_is_cleared_and_what_it_was_about_to_replace_is_back(tmp_path):
    for step in (3, 7):
        checkpoint.save(tmp_path, step, TREE).result()
    os.rename(tmp_path / "3", tmp_path / ".3.replaced")
    for name in (".9.partial", ".7.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    (tmp_path / ".mine.partial").mkdir()
    assert checkpoint.restore(tmp_path, TREE, step=3).step == 3
    os.rename(tmp_path / "3", tmp_path / ".3.replaced")
    checkpoint.save(tmp_path, 8, TREE, keep=3).result()
    (tmp_path / ".mine.partial").rmdir()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["3", "7", "8"]
    assert all(checkpoint.restore(tmp_path, TREE, step=step).step == step for step in (3, 7, 8))


def test_a_replacement_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 3, TREE, metadata={"epoch": 1}).result()
    replace = os.replace

    def fail(source, target):
        if str(source).endswith(".partial"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(checkpoint.CheckpointError, match=r"3 cannot be written: Input/output error\."):
        checkpoint.save(tmp_path, 3, TREE, metadata={"epoch": 2}).result()
    assert [file.name for file in tmp_path.iterdir()] == ["3"]
    assert checkpoint.restore(tmp_path).metadata == {"epoch": 1}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints 1 and 2, to be copied."""
    folder = tmp_path_factory.mktemp("two")
    checkpoint.save(folder, 1, TREE, metadata={"epoch": 1}).result()
    checkpoint.save(folder, 2, TREE, metadata={"epoch": 2}).result()
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "copy"


@given(data=st.data())
def test_damage_is_found_and_named_and_the_newest_whole_one_is_restored(two, scratch, damage, assert_same, data):
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(two, scratch)
    files = sorted(file for file in (scratch / "2").rglob("*") if file.is_file() and file.stat().st_size)
    file = data.draw(st.sampled_from(files), label="file")
    damage(file, data)
    with pytest.raises(checkpoint.CheckpointError, match=rf"(?s)checkpoint.*{file.name}"):
        checkpoint.restore(scratch, TREE, step=2)
    with pytest.warns(UserWarning, match=rf"(?s){file.name}.* Step 1 is restored instead"):
        restored = checkpoint.restore(scratch, TREE)
    assert (restored.step, restored.metadata) == (1, {"epoch": 1})
    assert_same(restored.tree, TREE)


def test_damage_to_all_is_told_of_each(two, scratch):
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(two, scratch)
    for step in (1, 2):
        (scratch / str(step) / "arrays" / "_METADATA").write_text("{}")
    with pytest.raises(checkpoint.CheckpointError, match=r"copy/2 is damaged: .*_METADATA.*copy/1 is damaged: "):
        checkpoint.restore(scratch, TREE)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("boom",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read"),
        (pickle.dumps(Bomb()), "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[1, 2]", "is not a checkpoint of flipout_jax"),
        (json.dumps({"format": "another"}).encode(), "is not a checkpoint of flipout_jax"),
        (json.dumps({"format": "flipout_jax checkpoint", "version": 2}).encode(), "has version 2 of the format"),
        (None, "there is no checkpoint.json in it"),
    ],
)
def test_foreign_files_are_refused(two, scratch, monkeypatch, content, told):
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(two, scratch)
    monkeypatch.chdir(scratch)
    (scratch / "2" / "checkpoint.json").unlink()
    if content is not None:
        (scratch / "2" / "checkpoint.json").write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=told):
        checkpoint.restore(scratch, TREE, step=2)
    assert not (scratch / "boom").exists()


@pytest.mark.parametrize("name", ["2", "2/arrays", "2/arrays/_METADATA", "2/other"])
def test_links_are_refused(two, scratch, name):
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(two, scratch)
    outside = scratch.with_name("outside")
    shutil.rmtree(outside, ignore_errors=True)
    shutil.copytree(two, outside)
    path = scratch / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(outside / name)
    with pytest.raises(checkpoint.CheckpointError, match=rf"{name} is a link"):
        checkpoint.restore(scratch, TREE, step=2)


def test_a_file_that_does_not_belong_is_refused(two, scratch):
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(two, scratch)
    (scratch / "2" / "arrays" / "more").write_text("")
    with pytest.raises(checkpoint.CheckpointError, match=r"copy/2 is refused: arrays/more does not belong to it"):
        checkpoint.restore(scratch, TREE, step=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", []),
        ("leaves", {}),
        ("leaves", [[1]]),
        ("bytes", "9"),
        ("bytes", 10**6),
        ("score", "9"),
        ("step", None),
    ],
)
def test_a_manifest_that_someone_made_fit_is_told(two, scratch, field, value):
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(two, scratch)
    file = scratch / "2" / "checkpoint.json"
    manifest = json.loads(file.read_text()) | {field: value}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(manifest, indent=1) + "\n")
    with pytest.raises(checkpoint.CheckpointError, match=r"copy/2 (is damaged|cannot be read)"):
        checkpoint.restore(scratch, TREE, step=2)
    checkpoint.save(scratch, 3, TREE).result()


def test_a_file_that_cannot_be_read_is_passed_over(two, scratch, monkeypatch):
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(two, scratch)
    digest = hashlib.file_digest

    def fail(stream, name):
        if stream.name.endswith("copy/2/arrays/_METADATA"):
            raise OSError(5, "Input/output error")
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.warns(UserWarning, match=r"_METADATA cannot be read: .*Input/output error.* Step 1 is restored"):
        assert checkpoint.restore(scratch, TREE).step == 1


def test_numbers_of_arrays_are_numbers(tmp_path):
    checkpoint.save(tmp_path, np.int64(3), TREE, keep=np.int32(2), score=jnp.float32(0.5)).result()
    assert checkpoint.restore(tmp_path, TREE, step=jnp.int32(3)).step == 3
    assert checkpoint.best(tmp_path) == 3


def test_another_tree_is_told_by_its_first_leaf(tmp_path):
    checkpoint.save(tmp_path, 1, TREE).result()
    cases = [
        (TREE | {"c": jnp.ones(1)}, r"`like` must have the leaves that were saved, got 'c' where nothing was"),
        ({"a": TREE["a"]}, r"got nothing where 'b/0' was"),
        (TREE | {"a": jnp.ones((3, 2))}, r"got float32\[3, 2\] for 'a', which was float32\[2, 3\]"),
        (TREE | {"a": jnp.ones((2, 3), jnp.bfloat16)}, r"got bfloat16\[2, 3\] for 'a', which was float32\[2, 3\]"),
        (TREE | {"b": [*TREE["b"][:2], jax.random.key(7, impl="rbg")]}, r"got key:rbg\[\] for 'b/2', which was key:"),
    ]
    for like, told in cases:
        with pytest.raises(ValueError, match=told):
            checkpoint.restore(tmp_path, like)
    checkpoint.save(tmp_path, 2, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}).result()
    with pytest.raises(ValueError, match="`like` must be given where two leaves have one name, as 'a/b'"):
        checkpoint.restore(tmp_path)


def test_wrong_arguments_are_named_with_their_value(tmp_path, raises):
    (tmp_path / "file").write_text("")
    for arguments, name, value in [
        ((tmp_path, -1, TREE), "step", -1),
        ((tmp_path, True, TREE), "step", True),
        ((str(tmp_path / "file"), 1, TREE), "folder", str(tmp_path / "file")),
        ((tmp_path, 1, {"f": print}), "tree", print),
        ((tmp_path, 1, {"f": np.array(["x"])}), "tree", np.array(["x"])),
    ]:
        with raises(name, value):
            checkpoint.save(*arguments)
    for name, value in (("keep", 0), ("score", float("nan")), ("metadata", {"f": print}), ("metadata", [1])):
        with raises(name, value):
            checkpoint.save(tmp_path, 1, TREE, **{name: value})
    with pytest.raises(checkpoint.CheckpointError, match=r"There is no checkpoint in .*nothing"):
        checkpoint.restore(tmp_path / "nothing")
    checkpoint.save(tmp_path, 4, TREE).result()
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint of step 3 in .*; there are 4"):
        checkpoint.restore(tmp_path, step=3)
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == ["4"]


def test_orbax_is_asked_for_only_when_needed(monkeypatch, tmp_path):
    program = "import sys, flipout_jax; assert 'orbax' not in sys.modules; print('fine')"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"fine\n"
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r'pip install "flipout_jax\[checkpoint\]"'):
        checkpoint.save(tmp_path, 1, TREE)


def test_no_warning_where_nothing_is_wrong(two):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.restore(two, TREE).step == 2
