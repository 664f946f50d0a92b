"""Sets of TensorFlow Datasets: the real builders and writers, with a few random images in place of the download."""

import contextlib
import io
import time
import types

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import assemble, prepare
from experiments.data.stream import train_batches
from experiments.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("tensorflow")
prepare.import_tfds("mnist")
tfds.disable_progress_bar()

COUNTS = {"train": 12, "test": 5}


def examples(features, count, seed=0):
    """Random examples of a set: images of many sizes where it has no size, and labels in turn."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        example = {}
        for key, feature in features.items():
            if isinstance(feature, tfds.features.Image):
                height, width, channels = feature.shape
                shape = height or 20 + number, width or 31, channels
                example[key] = rng.integers(0, 256, shape).astype(feature.np_dtype)
            elif isinstance(feature, tfds.features.ClassLabel):
                example[key] = number % feature.num_classes
            else:
                example[key] = f"{number}"
        yield number, example


def write(real, folder, counts=None, file_format="tfrecord", config=None, change=lambda example: example):
    """Prepares a set with the builder `real`, and gives its examples by split, in the order in which they are kept."""
    counts = counts or COUNTS

    class Few(real, skip_registration=True):
        name = real.name

        def _split_generators(self, dl_manager):
            return {split: self._few(split) for split in counts}

        def _few(self, split):
            for key, example in examples(self.info.features, counts[split], seed=len(split)):
                yield key, change(example)

    builder = Few(data_dir=folder, **({"config": config} if config else {}))
    builder.download_and_prepare(file_format=file_format)
    return builder


def stored(builder, split):
    """Images and labels of a split as TensorFlow itself decodes them."""
    rows = list(builder.as_dataset(split=split).as_numpy_iterator())
    return [row["image"] for row in rows], [int(row["label"]) for row in rows]


class Shapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set whose code nobody else has."""

    name = "shapes"
    VERSION = tfds.core.Version("1.2.3")
    FEATURES = types.MappingProxyType(
        {
            "picture": tfds.features.Image(shape=(7, 9, 3), encoding_format="png"),
            "kind": tfds.features.ClassLabel(names=["round", "square"]),
        }
    )

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(dict(self.FEATURES)))

    def _split_generators(self, dl_manager):
        raise NotImplementedError

    def _generate_examples(self):
        raise NotImplementedError


def load(name, tmp_path, **options):
    return data.load(name, data.Options(cache_dir=tmp_path / "cache", tfds_data_dir=tmp_path / "tfds", **options))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_named_set_is_read_pixel_by_pixel(tmp_path, name):
    builder = write(tfds.builder_cls(name), tmp_path / "tfds")
    read = load(name, tmp_path)
    assert read.shape == builder.info.features["image"].shape
    assert read.classes == tuple(builder.info.features["label"].names)
    for split, part in (("train", read.train), ("test", read.test)):
        images, labels = stored(builder, split)
        np.testing.assert_array_equal(part.images, images)
        np.testing.assert_array_equal(part.labels, labels)
    if name == "cifar10":
        np.testing.assert_allclose(read.std, [0.2023, 0.1994, 0.2010])
    else:
        np.testing.assert_allclose(read.mean, (read.train.images / 255).mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_imagenette_is_brought_to_224_pixels(tmp_path, file_format):
    counts = {"train": 4, "validation": 3}
    real = tfds.builder_cls("imagenette")
    write(real, tmp_path / "tfds", counts, file_format, config="full-size-v2")
    originals = write(real, tmp_path / "other", counts, config="full-size-v2")
    read = load("imagenette", tmp_path)
    assert read.shape == (224, 224, 3)
    assert (read.train_count, read.test_count) == (4, 3)
    np.testing.assert_allclose(read.mean, [0.4625, 0.4580, 0.4295])
    images, labels = stored(originals, "validation")
    np.testing.assert_array_equal(read.test.labels, labels)
    resized = [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)) for image in images]
    # Its images are JPEG, which TensorFlow decodes a little differently.
    assert np.abs(read.test.images - np.array(resized, np.float32)).mean() < 2


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_set_without_code_is_read_by_its_name(tmp_path, file_format):
    write(Shapes, tmp_path / "tfds", file_format=file_format)
    for name in ("shapes", "shapes:1.2.3"):
        read = load(name, tmp_path)
        assert read.name == name
        assert read.shape == (7, 9, 3)
        assert read.classes == ("round", "square")
        assert sorted(read.train.labels) == [0] * 6 + [1] * 6
        expected = {example["picture"].tobytes() for _, example in examples(Shapes.FEATURES, 12, seed=5)}
        assert {image.tobytes() for image in read.train.images} == expected


def test_the_second_time_comes_from_the_cache_until_the_data_change(tmp_path, monkeypatch):
    write(Shapes, tmp_path / "tfds")
    first = load("shapes", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(assemble, "decode", None)
        second = load("shapes", tmp_path)
        with pytest.raises(TypeError):
            load("shapes", tmp_path, train_split="train[:50%]")
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.test.labels, second.test.labels)
    (tmp_path / "tfds").rename(tmp_path / "old")
    write(Shapes, tmp_path / "tfds", {"train": 3, "test": 2})
    assert load("shapes", tmp_path).train_count == 3


def test_parts_of_splits(tmp_path):
    write(Shapes, tmp_path / "tfds", {"train": 20})
    whole = load("shapes", tmp_path, test_split="train")
    parts = load("shapes", tmp_path, train_split="train[:80%]", test_split="train[80%:]")
    assert (parts.train_count, parts.test_count) == (16, 4)
    images = np.concatenate([parts.train.images, parts.test.images])
    np.testing.assert_array_equal(images, whole.train.images)


@pytest.mark.parametrize(("name", "real"), [("cifar10", tfds.builder_cls("cifar10")), ("shapes", Shapes)])
def test_a_stream_has_the_images_that_memory_has(tmp_path, name, real):
    write(real, tmp_path / "tfds", file_format="array_record")
    memory, disk = load(name, tmp_path, stream=False), load(name, tmp_path, stream=True)
    for field in ("classes", "shape", "train_count", "test_count"):
        assert getattr(memory, field) == getattr(disk, field)
    np.testing.assert_array_equal(memory.mean, disk.mean)
    np.testing.assert_array_equal(memory.test.labels, disk.test.labels)
    np.testing.assert_array_equal(memory.test.images, [disk.test[i][0] for i in range(5)])
    with contextlib.closing(train_batches(disk.train, 12, seed=0)) as batches:
        batch = next(batches)
    expected = {(image.tobytes(), label) for image, label in memory.train}
    assert {(image.tobytes(), label) for image, label in zip(*batch, strict=True)} == expected


def test_a_stream_needs_a_format_that_is_read_in_any_order(tmp_path):
    write(Shapes, tmp_path / "tfds")
    message = r"format tfrecord.*`tfds build shapes --data_dir=DIR --file_format=array_record`"
    with pytest.raises(UserError, match=message):
        load("shapes", tmp_path, stream=True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_label_of_no_class_is_named(tmp_path, stream):
    write(Shapes, tmp_path / "tfds", file_format="array_record", change=lambda example: example | {"kind": -1})
    message = (
        r"number 0 of the split train of shapes/1.2.3 has the label -1, and the 2 classes are 0 to 1.*--test-split"
    )
    with pytest.raises(UserError, match=message):
        load("shapes", tmp_path, stream=stream)


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"train": 3}, {}, r"neither `test` nor `validation`: shapes has train \(3\).*--train-split \"train\[:80%\]\""),
        ({"test": 3}, {}, r"--train-split train cannot be read: shapes has test \(3\)"),
        ({"train": 3, "test": 2}, {"test_split": "tset"}, "--test-split tset cannot be read: shapes has"),
        ({"train": 3, "test": 2}, {"train_split": "train[:900%]"}, r"--train-split train\[:900%\] cannot be read"),
        ({"train": 3, "test": 2}, {"train_split": "train[3:]"}, r"--train-split train\[3:\] holds no images"),
    ],
)
def test_a_split_that_is_not_there(tmp_path, counts, options, message):
    write(Shapes, tmp_path / "tfds", counts)
    with pytest.raises(UserError, match=message):
        load("shapes", tmp_path, **options)


@pytest.mark.parametrize(
    "features",
    [
        {"text": tfds.features.Text(), "kind": tfds.features.ClassLabel(num_classes=2)},
        {
            "picture": tfds.features.Image(shape=(7, 9, 1), dtype=np.uint16),
            "kind": tfds.features.ClassLabel(num_classes=2),
        },
        {
            "left": tfds.features.Image(),
            "right": tfds.features.Image(),
            "kind": tfds.features.ClassLabel(num_classes=2),
        },
        {"picture": tfds.features.Image(shape=(7, 9, 3)), "text": tfds.features.Text()},
    ],
)
def test_a_set_of_something_else_says_what_it_has(tmp_path, features):
    class Other(Shapes, skip_registration=True):
        name = "shapes"
        FEATURES = features

    write(Other, tmp_path / "tfds")
    listed = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in sorted(features.items()))
    with pytest.raises(UserError, match=f"--data shapes must be a set with one image.*its features are {listed}"):
        load("shapes", tmp_path)


def test_an_unknown_name_lists_near_ones(tmp_path):
    with pytest.raises(UserError, match=r"got 'mnits'\. Similar names are: .*\bmnist\b"):
        load("mnits", tmp_path)


@pytest.mark.parametrize("name", ["imagenette/huge", "mnist:9.9.9"])
def test_an_unknown_variant(tmp_path, name):
    with pytest.raises(UserError, match=f"--data {name} cannot be found in TensorFlow Datasets"):
        load(name, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "imagenette", "food101"])
def test_without_network_what_to_do_is_said_within_seconds(tmp_path, monkeypatch, name):
    # Nobody listens there.
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    start = time.perf_counter()
    message = rf"--data {name} is not prepared in {tmp_path}/tfds/{name}/.*cannot be reached.*experiments.data {name}"
    with pytest.raises(UserError, match=message):
        load(name, tmp_path)
    assert time.perf_counter() - start < 15
    assert not (tmp_path / "tfds").exists()


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(prepare.urllib.request, "urlopen", lambda url, timeout: time.sleep(3) or io.BytesIO())
    with pytest.raises(UserError, match=r"cannot be reached \(no answer\)"):
        load("mnist", tmp_path)


def test_a_download_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.urllib.request, "urlopen", lambda url, timeout: io.BytesIO())
    # It has to be downloaded by hand.
    with pytest.raises(UserError, match=r"--data imagenet2012 is not prepared .*AssertionError: Manual directory"):
        load("imagenet2012", tmp_path)
