"""Files that are damaged, foreign or elsewhere end in one error that names them, and nothing in them is run."""

import contextlib
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments import compare, data, files, inspect
from experiments.data import cache
from experiments.errors import UserError
from experiments.folder import plots, run_directory
from experiments.options.config import Config
from experiments.run import training

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
# Files of a run, with what is read from them.
READ_AS_ARRAYS = {"params.safetensors"}
READ_AS_JSON = {"config.json", "metrics.jsonl", "flips.jsonl", "tables.json", "summary.json"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that has finished."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    training.run(Config(model="lenet_300_100", epochs=4, steps_per_epoch=2, test_images=40, output_dir=folder))
    return folder


@pytest.fixture
def copy(whole, monkeypatch):
    """`copy()`: the folder of a run, the same one each time, whole again. Pictures of it are made, but not written."""
    monkeypatch.setattr(plots, "save", lambda *_: None)

    def copy():
        folder = whole.with_name("copy")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        return folder

    return copy


def read_all(folder):
    """Everything that reads the folder of a run."""
    inspect.inspect(folder)
    compare.compare(compare.Options((folder,), picture=folder / "c.png"))
    run_directory.forget_from(folder, 3)


SLOW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(drawn=st.data())
def test_damage_to_a_file_of_a_run_is_told_or_does_no_harm(copy, damage, drawn):
    folder = copy()
    file = folder / drawn.draw(st.sampled_from(sorted(READ_AS_ARRAYS | READ_AS_JSON)), label="file")
    damage(file, drawn)
    told = contextlib.nullcontext()
    if file.name in READ_AS_ARRAYS:
        # These have a digest, so no change goes unseen.
        told = pytest.raises(UserError, match=rf"{file.name} cannot be read as the parameters of a run: it is damaged")
    with told:
        read_or_told(folder)
        if file.name in READ_AS_ARRAYS:
            run_directory.read_parameters(folder)


def read_or_told(folder):
    with contextlib.suppress(UserError):
        read_all(folder)


def replace_one_value(value, drawn):
    """The same JSON, with one value in it replaced, or taken away."""
    if isinstance(value, dict | list) and value and drawn.draw(st.integers(0, 4), label="deeper"):
        names = sorted(value) if isinstance(value, dict) else range(len(value))
        name = drawn.draw(st.sampled_from(names), label="at")
        if drawn.draw(st.booleans(), label="take away"):
            del value[name]
        else:
            value[name] = replace_one_value(value[name], drawn)
        return value
    return drawn.draw(JSON, label="value")


@SLOW
@given(drawn=st.data())
def test_foreign_values_in_a_file_of_a_run_are_told_or_do_no_harm(copy, drawn):
    folder = copy()
    file = folder / drawn.draw(st.sampled_from(sorted(READ_AS_JSON)), label="file")
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    number = drawn.draw(st.integers(0, len(lines) - 1), label="line")
    lines[number] = json.dumps(replace_one_value(json.loads(lines[number]), drawn))
    file.write_text("".join(f"{line}\n" for line in lines))
    read_or_told(folder)


@pytest.mark.parametrize("name", sorted(READ_AS_ARRAYS | READ_AS_JSON))
@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[" * 100_000 + b"\n", b"{}\n", b"[1]\n", b"null\n", b'{"epoch": 1e999}\n']
)
def test_a_file_that_is_no_file_of_a_run_is_named(copy, name, content):
    folder = copy()
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"copy/{name} (cannot be read|must have)"):
        read_all(folder)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("boom",)


def test_nothing_that_is_read_is_run(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in sorted(READ_AS_ARRAYS | READ_AS_JSON):
        folder = copy()
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(UserError, match=name):
            read_all(folder)
    np.savez(tmp_path / "cache.safetensors", train_images=np.array([Bomb()], object))
    os.rename(tmp_path / "cache.safetensors.npz", tmp_path / "cache.safetensors")
    assert cache.read(tmp_path / "cache.safetensors") is None
    assert not (tmp_path / "boom").exists()


@SLOW
@given(drawn=st.data())
def test_a_damaged_cache_is_made_anew(image_folder, tmp_path, damage, capsys, drawn):
    options = data.Options(cache_dir=tmp_path / "cache")
    expected = data.load(f"folder:{image_folder}", options)
    (file,) = (tmp_path / "cache").iterdir()
    before = file.read_bytes()
    damage(file, drawn)
    capsys.readouterr()
    again = data.load(f"folder:{image_folder}", options)
    assert f"{file} are unusable: it is" in capsys.readouterr().out
    np.testing.assert_array_equal(expected.train.images, again.train.images)
    assert file.read_bytes() == before


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tiff"])
@SLOW
@given(drawn=st.data())
def test_a_damaged_image_is_named_or_decoded(tmp_path, suffix, damage, drawn):
    file = tmp_path / f"0.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)).save(file)
    damage(file, drawn)
    item = data.decode.Encoded(file, 0, str(file))
    told = None
    try:
        pixels = data.decode.decode(item)
    except UserError as error:
        told = str(error)
    if told is None:
        # Not every format notices.
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
    else:
        assert told.startswith(f"The image {file} cannot be decoded: ")


@pytest.mark.parametrize("what", ["file", "class", "split", "absolute"])
@pytest.mark.parametrize("stream", [False, True])
def test_links_out_of_the_folder_are_refused(image_folder, tmp_path, what, stream):
    outside = tmp_path / "outside"
    path = {"file": "train/cat/0.png", "class": "test/dog", "split": "train", "absolute": "test/cat/0.png"}[what]
    shutil.move(image_folder / path, outside)
    target = outside if what == "absolute" else os.path.relpath(outside, (image_folder / path).parent)
    (image_folder / path).symlink_to(target)
    with pytest.raises(UserError, match=rf"must be in {image_folder}, but .* leads to {outside}"):
        data.load(f"folder:{image_folder}", data.Options(cache_dir=tmp_path / "cache", stream=stream))
    assert not (tmp_path / "cache").exists()


def test_links_inside_the_folder_and_to_it_are_followed(image_folder, tmp_path):
    (image_folder / "train/cat/9.png").symlink_to("0.png")
    (tmp_path / "link").symlink_to(image_folder)
    found = data.load(f"folder:{tmp_path / 'link'}", data.Options(cache_dir=tmp_path / "cache"))
    np.testing.assert_array_equal(found.train.images[0], found.train.images[3])


def test_names_that_lead_out_of_tiny_imagenet_are_refused(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for file in ("train/n1/images/0.JPEG", "val/images/0.JPEG", "../secret.JPEG"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / file)
    (root / "words.txt").write_text("n1\tgoldfish\n")
    options = data.Options(cache_dir=tmp_path / "cache", tfds_data_dir=tmp_path)
    for name in ("../../../secret.JPEG", str(tmp_path / "secret.JPEG")):
        (root / "val/val_annotations.txt").write_text(f"{name}\tn1\t0\t0\t1\t1\n")
        with pytest.raises(UserError, match=r"must be in .*tiny-imagenet-200, but .* leads to "):
            data.load("tiny_imagenet", options)


def test_an_archive_is_told_to_be_unpacked(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"images\.zip must be a folder with .*, but it is a file. Unpack an archive"):
        data.load(f"folder:{tmp_path / 'images.zip'}", data.Options())


@SLOW
@given(drawn=st.data())
def test_arrays_come_back_bit_for_bit_or_not_at_all(tmp_path, damage, drawn):
    rng = np.random.default_rng(0)
    named = {
        "floats": rng.standard_normal((2, 3)).astype(np.float32),
        "bool": rng.random(5) < 0.5,
        "scalar": np.array(7),
        "empty": np.zeros((0, 3)),
        "nan": np.array([np.nan, -0.0]),
    }
    file = tmp_path / "arrays"
    files.save_arrays(file, named)
    stored = files.load_arrays(file)
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in stored.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in named.items()
    }
    damage(file, drawn)
    with pytest.raises(ValueError, match=r"it is damaged|it is not by this program"):
        files.load_arrays(file)
