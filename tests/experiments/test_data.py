"""Data sets: what is read, and what is said of folders that cannot be."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments import image_folder as image_folder_module
from experiments.errors import UserError


def load(root, tmp_path):
    return data.load(f"folder:{root}", tmp_path / "cache")


def test_digits_are_split_the_same_way_each_time():
    first, second = data.load("digits"), data.load("digits")
    assert first.train_images.shape == (1347, 8, 8, 1)
    assert first.test_images.shape == (450, 8, 8, 1)
    assert first.train_images.dtype == np.uint8
    assert first.train_images.max() == 255
    np.testing.assert_array_equal(first.test_labels, second.test_labels)
    np.testing.assert_array_equal(first.test_images, second.test_images)
    assert np.bincount(first.test_labels).min() >= 43
    # No image is in both parts.
    assert len(np.unique(np.concatenate([first.train_images, first.test_images]), axis=0)) == 1797


def test_mean_and_std_are_those_of_the_training_pixels():
    digits = data.load("digits")
    mean, std = digits.mean_and_std()
    np.testing.assert_allclose(mean, [(digits.train_images / 255).mean()], rtol=1e-6)
    np.testing.assert_allclose(std, [(digits.train_images / 255).std()], rtol=1e-6)


def test_a_constant_channel_is_not_divided_by_zero():
    images = np.zeros((2, 3, 3, 2), np.uint8)
    images[0, ..., 1] = 255
    labels = np.zeros(2, np.int32)
    mean, std = data.Dataset("x", images, labels, images, labels, ("a",)).mean_and_std()
    np.testing.assert_allclose(mean, [0, 0.5])
    np.testing.assert_allclose(std, [1, 0.5])


def test_a_folder_is_read_pixel_by_pixel(image_folder, tmp_path):
    folder = load(image_folder, tmp_path)
    assert folder.classes == ("cat", "dog")
    assert folder.shape == (6, 5, 1)
    assert folder.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert folder.test_labels.tolist() == [0, 1]
    expected = np.asarray(Image.open(image_folder / "train" / "dog" / "1.png"))
    np.testing.assert_array_equal(folder.train_images[4, ..., 0], expected)


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "tiff")])
def test_colour_formats_have_three_channels(image_folder, tmp_path, mode, suffix):
    colours = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 5, 3)).astype(np.uint8)).convert(mode)
    colours.save(image_folder / "train" / "cat" / f"9.{suffix}")
    folder = load(image_folder, tmp_path)
    assert folder.shape == (6, 5, 3)
    np.testing.assert_array_equal(folder.train_images[3], np.asarray(colours.convert("RGB")))
    grey = np.asarray(Image.open(image_folder / "train" / "cat" / "0.png"))
    np.testing.assert_array_equal(folder.train_images[0], np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(("mode", "suffix"), [("1", "png"), ("L", "bmp"), ("LA", "png"), ("L", "webp")])
def test_grey_formats_have_one_channel(image_folder, tmp_path, mode, suffix):
    grey = Image.fromarray(np.full((6, 5), 200, np.uint8)).convert(mode)
    grey.save(image_folder / "train" / "cat" / f"9.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    folder = load(image_folder, tmp_path)
    if suffix == "webp":  # It knows no grey.
        assert folder.shape == (6, 5, 3)
    else:
        assert folder.shape == (6, 5, 1)
        np.testing.assert_array_equal(folder.train_images[3, ..., 0], np.asarray(grey.convert("L")))


def test_16_bit_images_keep_their_range(image_folder, tmp_path):
    levels = np.linspace(0, 65535, 30).reshape(6, 5).astype(np.uint16)
    Image.fromarray(levels).save(image_folder / "train" / "cat" / "9.png")
    read = load(image_folder, tmp_path).train_images[3, ..., 0]
    np.testing.assert_array_equal(read, np.round(levels / 257))


def test_the_second_time_comes_from_the_cache(image_folder, tmp_path, monkeypatch):
    first = load(image_folder, tmp_path)
    monkeypatch.setattr(image_folder_module, "_decode_one", None)
    second = load(image_folder, tmp_path)
    np.testing.assert_array_equal(first.train_images, second.train_images)
    np.testing.assert_array_equal(first.test_images, second.test_images)


def test_a_changed_image_is_read_anew(image_folder, tmp_path):
    load(image_folder, tmp_path)
    file = image_folder / "train" / "cat" / "0.png"
    Image.fromarray(np.full((6, 5), 7, np.uint8)).save(file)
    os.utime(file, ns=(1, 1))
    assert (load(image_folder, tmp_path).train_images[0] == 7).all()


@pytest.mark.parametrize("damage", ["truncate", "empty", "noise", "pickle"])
def test_a_damaged_cache_is_made_anew(image_folder, tmp_path, damage):
    whole = load(image_folder, tmp_path)
    (cache,) = (tmp_path / "cache").iterdir()
    if damage == "truncate":
        cache.write_bytes(cache.read_bytes()[:-100])
    elif damage == "empty":
        cache.write_bytes(b"")
    elif damage == "noise":
        cache.write_bytes(bytes(range(256)) * 8)
    else:
        np.savez(cache, train=np.array([{}], object), test=np.array([{}], object))
    again = load(image_folder, tmp_path)
    np.testing.assert_array_equal(whole.train_images, again.train_images)
    np.testing.assert_array_equal(np.load(cache)["train"], whole.train_images)


def test_files_that_belong_to_the_system_are_passed_over(image_folder, tmp_path):
    for name in (".DS_Store", "Thumbs.db"):
        (image_folder / "train" / "cat" / name).write_bytes(b"x")
    assert len(load(image_folder, tmp_path).train_labels) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root), "no such folder"),
        (lambda root: shutil.rmtree(root / "train"), r"no folder .*train"),
        (lambda root: shutil.rmtree(root / "test"), r"no folder .*test"),
        (lambda root: [f.unlink() for f in (root / "train/dog").iterdir()], r"train/dog is empty"),
        (lambda root: shutil.rmtree(root / "test/dog"), r"same classes; only one of them has: dog"),
        (lambda root: [shutil.rmtree(f) for f in (root / "train").iterdir()], "no class folders"),
        (lambda root: (root / "train/dog/1.png").write_bytes(b"not an image"), r"train/dog/1.png cannot be decoded"),
        (
            lambda root: (root / "train/dog/1.png").write_bytes((root / "train/dog/1.png").read_bytes()[:45]),
            r"train/dog/1.png cannot be decoded",
        ),
        (lambda root: (root / "train/dog/1.png").write_bytes(b""), r"train/dog/1.png cannot be decoded"),
        (
            lambda root: Image.new("L", (9, 9)).save(root / "train/dog/1.png"),
            r"same size, got 9x9 for .*train/dog/1.png and 6x5",
        ),
    ],
)
def test_a_folder_that_cannot_be_read(image_folder, tmp_path, change, message):
    change(image_folder)
    with pytest.raises(UserError, match=message):
        load(image_folder, tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["mnits", "folder:", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UserError, match=f"`digits` or `folder:PATH`, got {name!r}"):
        data.load(name)


def test_a_home_that_nobody_has():
    with pytest.raises(UserError, match="folder:~nobody-at-all/x must be a folder"):
        data.load("folder:~nobody-at-all/x")
