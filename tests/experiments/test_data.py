"""Data sets: what is read, and what is said of folders that cannot be."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import assemble
from experiments.data.dataset import mean_and_std
from experiments.errors import UserError


def load(root, tmp_path, **options):
    return data.load(f"folder:{root}", data.Options(cache_dir=tmp_path / "cache", **options))


def test_digits_are_split_the_same_way_each_time():
    first, second = data.load("digits"), data.load("digits")
    assert first.train.images.shape == (1347, 8, 8, 1)
    assert first.test.images.shape == (450, 8, 8, 1)
    assert first.train.images.dtype == np.uint8
    assert first.train.images.max() == 255
    np.testing.assert_array_equal(first.test.labels, second.test.labels)
    np.testing.assert_array_equal(first.test.images, second.test.images)
    assert np.bincount(first.test.labels).min() >= 43
    # No image is in both parts.
    assert len(np.unique(np.concatenate([first.train.images, first.test.images]), axis=0)) == 1797


def test_mean_and_std_are_those_of_the_training_pixels():
    digits = data.load("digits")
    np.testing.assert_allclose(digits.mean, [(digits.train.images / 255).mean()], rtol=1e-6)
    np.testing.assert_allclose(digits.std, [(digits.train.images / 255).std()], rtol=1e-6)


def test_a_constant_channel_is_not_divided_by_zero():
    images = np.zeros((2, 3, 3, 2), np.uint8)
    images[0, ..., 1] = 255
    mean, std = mean_and_std(images)
    np.testing.assert_allclose(mean, [0, 0.5])
    np.testing.assert_allclose(std, [1, 0.5])


def test_fewer_test_images_are_the_same_random_ones_each_time():
    digits = data.load("digits")
    few = data.limit_test(digits, 40)
    assert (few.test_count, few.train_count) == (40, 1347)
    np.testing.assert_array_equal(few.test.images, data.limit_test(digits, 40).test.images)
    everything = {(image.tobytes(), label) for image, label in digits.test}
    assert {(image.tobytes(), label) for image, label in few.test} <= everything
    assert data.limit_test(digits, None) is digits
    assert data.limit_test(digits, 450) is digits


def test_a_folder_is_read_pixel_by_pixel(image_folder, tmp_path):
    folder = load(image_folder, tmp_path)
    assert folder.classes == ("cat", "dog")
    assert folder.shape == (6, 5, 1)
    assert folder.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert folder.test.labels.tolist() == [0, 1]
    assert folder.train.labels.dtype == np.int32
    expected = np.asarray(Image.open(image_folder / "train" / "dog" / "1.png"))
    np.testing.assert_array_equal(folder.train.images[4, ..., 0], expected)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_the_test_folder(image_folder, tmp_path, name):
    usual = load(image_folder, tmp_path)
    (image_folder / "test").rename(image_folder / name)
    np.testing.assert_array_equal(load(image_folder, tmp_path).test.images, usual.test.images)


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "tiff")])
def test_color_formats_have_three_channels(image_folder, tmp_path, mode, suffix):
    colors = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 5, 3)).astype(np.uint8)).convert(mode)
    colors.save(image_folder / "train" / "cat" / f"9.{suffix}")
    folder = load(image_folder, tmp_path)
    assert folder.shape == (6, 5, 3)
    np.testing.assert_array_equal(folder.train.images[3], np.asarray(colors.convert("RGB")))
    grey = np.asarray(Image.open(image_folder / "train" / "cat" / "0.png"))
    np.testing.assert_array_equal(folder.train.images[0], np.stack([grey] * 3, axis=-1))
    grey = np.asarray(Image.open(image_folder / "test" / "dog" / "0.png"))
    np.testing.assert_array_equal(folder.test.images[1], np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(("mode", "suffix"), [("1", "png"), ("L", "bmp"), ("LA", "png"), ("L", "webp")])
def test_grey_formats_have_one_channel(image_folder, tmp_path, mode, suffix):
    grey = Image.fromarray(np.full((6, 5), 200, np.uint8)).convert(mode)
    grey.save(image_folder / "train" / "cat" / f"9.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    folder = load(image_folder, tmp_path)
    if suffix == "webp":  # It knows no grey.
        assert folder.shape == (6, 5, 3)
    else:
        assert folder.shape == (6, 5, 1)
        np.testing.assert_array_equal(folder.train.images[3, ..., 0], np.asarray(grey.convert("L")))


def test_16_bit_images_keep_their_range(image_folder, tmp_path):
    levels = np.linspace(0, 65535, 30).reshape(6, 5).astype(np.uint16)
    Image.fromarray(levels).save(image_folder / "train" / "cat" / "9.png")
    read = load(image_folder, tmp_path).train.images[3, ..., 0]
    np.testing.assert_array_equal(read, np.round(levels / 257))


@pytest.mark.parametrize("stream", [False, True])
def test_images_of_many_sizes_are_all_brought_to_one(image_folder, tmp_path, stream):
    large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 31, 3)).astype(np.uint8))
    large.save(image_folder / "train" / "cat" / "9.png")
    folder = load(image_folder, tmp_path, image_size=8, stream=stream)
    assert folder.shape == (8, 8, 3)
    image, small = (folder.train[3][0], folder.train[0][0]) if stream else folder.train.images[[3, 0]]
    np.testing.assert_array_equal(image, np.asarray(large.resize((8, 8), Image.Resampling.BILINEAR)))
    original = Image.open(image_folder / "train" / "cat" / "0.png")
    np.testing.assert_array_equal(small[..., 0], np.asarray(original.resize((8, 8), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("stream", [False, True])
def test_images_of_one_size_keep_it(image_folder, tmp_path, stream):
    assert load(image_folder, tmp_path, image_size=8, stream=stream).shape == (6, 5, 1)


def test_images_that_would_not_fit_stay_on_disk(image_folder, tmp_path, monkeypatch):
    # 8 images of 30 bytes.
    monkeypatch.setattr(assemble.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * 8 * 30}.get)
    assert load(image_folder, tmp_path).train.in_memory
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(assemble.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * 8 * 30 - 1}.get)
    assert not load(image_folder, tmp_path).train.in_memory
    assert load(image_folder, tmp_path, stream=False).train.in_memory


def test_the_second_time_comes_from_the_cache(image_folder, tmp_path, monkeypatch):
    first = load(image_folder, tmp_path)
    monkeypatch.setattr(assemble, "decode", None)
    second = load(image_folder, tmp_path)
    for one, other in ((first.train, second.train), (first.test, second.test)):
        for before, after in ((one.images, other.images), (one.labels, other.labels)):
            np.testing.assert_array_equal(before, after)
            assert before.dtype == after.dtype


def test_a_changed_image_is_read_anew(image_folder, tmp_path):
    load(image_folder, tmp_path)
    file = image_folder / "train" / "cat" / "0.png"
    Image.fromarray(np.full((6, 5), 7, np.uint8)).save(file)
    os.utime(file, ns=(1, 1))
    assert (load(image_folder, tmp_path).train.images[0] == 7).all()


def test_a_cache_that_cannot_be_written_costs_time_only(image_folder, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file")
    assert load(image_folder, tmp_path).train_count == 6
    assert "are not cached" in capsys.readouterr().out


def test_files_that_belong_to_the_system_are_passed_over(image_folder, tmp_path):
    for name in (".DS_Store", "Thumbs.db"):
        (image_folder / "train" / "cat" / name).write_bytes(b"x")
    assert load(image_folder, tmp_path).train_count == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root), "no such folder"),
        (lambda root: shutil.rmtree(root / "train"), r"no folder .*train"),
        (lambda root: shutil.rmtree(root / "test"), r"or val, valid, validation.*no folder .*test"),
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
            r"same size, got 9x9 for .*train/dog/1.png and 6x5 for .*train/cat/0.png.*--image-size N",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_folder_that_cannot_be_read(image_folder, tmp_path, change, message, stream):
    change(image_folder)
    with pytest.raises(UserError, match=message):
        load(image_folder, tmp_path, stream=stream)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["folder:", "folder", "", "./images", "a b", "/data"])
def test_what_is_no_name_at_all(name):
    with pytest.raises(UserError, match=f"`digits`, `folder:PATH`, .*TensorFlow Datasets, .*got {name!r}"):
        data.load(name)


def test_a_home_that_nobody_has():
    with pytest.raises(UserError, match="folder:~nobody-at-all/x must be a folder"):
        data.load("folder:~nobody-at-all/x")


@pytest.fixture
def packed(tmp_path):
    """Tiny ImageNet as it is packed, of 2 classes with 2 training images and 1 test image each."""
    root = tmp_path / "tiny-imagenet-200"
    rng = np.random.default_rng(0)

    def save(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(file)

    for name in ("n02", "n01"):
        for i in range(2):
            save(root / "train" / name / "images" / f"{name}_{i}.JPEG")
    for i in range(2):
        save(root / "val" / "images" / f"val_{i}.JPEG")
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t1\t1\t5\t5\n")
    (root / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tEuropean fire salamander\n")
    return root


def load_tiny(packed):
    return data.load("tiny_imagenet", data.Options(cache_dir=packed.parent / "cache", tfds_data_dir=packed.parent))


def test_tiny_imagenet_is_read_as_it_is_packed(packed):
    tiny = load_tiny(packed)
    assert tiny.shape == (64, 64, 3)
    assert tiny.classes == ("goldfish", "European fire salamander")
    assert tiny.train.labels.tolist() == [0, 0, 1, 1]
    assert tiny.test.labels.tolist() == [1, 0]
    expected = np.asarray(Image.open(packed / "val" / "images" / "val_1.JPEG"))
    np.testing.assert_array_equal(tiny.test.images[1], expected)


def test_tiny_imagenet_says_where_it_is_looked_for(packed, tmp_path):
    (packed / "val/val_annotations.txt").write_text("val_0.JPEG n02\n")
    with pytest.raises(UserError, match=r"val_annotations.txt .*lines with tabs"):
        load_tiny(packed)
    shutil.rmtree(packed)
    with pytest.raises(UserError, match=rf"{packed}.*Download http.*--tfds-data-dir"):
        load_tiny(packed)
