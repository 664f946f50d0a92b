"""Images that stay on disk: orders, shards, positions, and what is said of those that cannot be used."""

import contextlib
import itertools

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data.dataset import Batch, padded_batches
from experiments.data.decode import Encoded, StoredImages
from experiments.data.stream import train_batches
from experiments.errors import UserError

COUNT = 22


@pytest.fixture
def numbered(tmp_path):
    """22 images of 2x3 pixels, each with its number as its level and as its label."""
    items = []
    for number in range(COUNT):
        file = tmp_path / f"{number}.png"
        Image.fromarray(np.full((2, 3), number, np.uint8)).save(file)
        items.append(Encoded(file, number, str(file)))
    return StoredImages(items, None, (2, 3, 1), items[0].name, COUNT)


def take(stored, batches, batch_size=4, seed=0, **options):
    """Labels of the first batches, of shape (batches, batch_size)."""
    with contextlib.closing(train_batches(stored, batch_size, seed=seed, **options)) as iterator:
        return np.stack([batch.labels for batch in itertools.islice(iterator, batches)])


def test_batches_hold_images_beside_their_labels(numbered):
    with contextlib.closing(train_batches(numbered, 4, seed=0)) as iterator:
        batch = next(iterator)
    assert isinstance(batch, Batch)
    assert (batch.images.shape, batch.images.dtype) == ((4, 2, 3, 1), np.uint8)
    assert (batch.labels.shape, batch.labels.dtype) == ((4,), np.int32)
    assert (batch.images == batch.labels[:, None, None, None]).all()


def test_an_epoch_has_each_image_at_most_once_and_an_order_of_its_own(numbered):
    # 5 whole batches of 4 of 22 images, 3 times.
    epochs = take(numbered, 15).reshape(3, 20)
    for epoch in epochs:
        assert len(set(epoch)) == 20
    assert not (epochs[0] == epochs[1]).all()
    assert not (epochs[1] == epochs[2]).all()
    # What does not fill a batch is not the same in each epoch.
    assert len({frozenset(range(COUNT)) - frozenset(epoch.tolist()) for epoch in epochs}) > 1


def test_the_order_depends_on_the_seed_alone(numbered):
    first = take(numbered, 12)
    for workers in (1, 2, 5):
        np.testing.assert_array_equal(take(numbered, 12, workers=workers), first)
    assert not (take(numbered, 12, seed=1) == first).all()


@pytest.mark.parametrize("batches", [0, 1, 4, 5, 7])
def test_a_restored_position_goes_on_with_the_same_batches(numbered, batches):
    whole = take(numbered, 15)
    with contextlib.closing(train_batches(numbered, 4, seed=0)) as iterator:
        for _ in range(batches):
            next(iterator)
        state = iterator.get_state()
    with contextlib.closing(train_batches(numbered, 4, seed=0, workers=3)) as iterator:
        next(iterator)
        iterator.set_state(state)
        rest = [next(iterator).labels for _ in range(15 - batches)]
    np.testing.assert_array_equal(rest, whole[batches:])
    np.testing.assert_array_equal(take(numbered, 15 - batches, start=batches), whole[batches:])


def test_shards_share_out_each_epoch(numbered):
    # 2 batches of 3 for each of 3 processes: 18 of 22 images.
    shards = [take(numbered, 6, batch_size=3, shard=(index, 3)) for index in range(3)]
    epochs = np.stack(shards).reshape(3, 3, 6).transpose(1, 0, 2).reshape(3, 18)
    for epoch in epochs:
        assert len(set(epoch)) == 18
    # Where the batches come out even, that is every image.
    shards = [take(numbered, 1, batch_size=11, shard=(index, 2)) for index in range(2)]
    assert sorted(np.concatenate(shards, axis=None)) == list(range(COUNT))


@pytest.mark.parametrize("batch_size", [4, 11, 30])
def test_a_pass_over_the_test_images_is_in_order_and_filled_up(numbered, batch_size):
    batches = list(padded_batches(numbered, batch_size))
    assert {batch.images.shape for batch in batches} == {(batch_size, 2, 3, 1)}
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    np.testing.assert_array_equal(labels[:COUNT], range(COUNT))
    np.testing.assert_array_equal(images[:COUNT, 0, 0, 0], range(COUNT))
    assert (labels[COUNT:] == -1).all()
    assert (images[COUNT:] == 0).all()
    assert labels.dtype == np.int32


def test_a_pass_can_be_left(numbered):
    with contextlib.closing(padded_batches(numbered, 4)) as batches:
        assert next(batches).labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items[7].content.write_bytes(b"no image"), "/7.png cannot be decoded"),
        (lambda items: items[7].content.unlink(), "/7.png cannot be decoded"),
        (
            lambda items: Image.new("L", (9, 9)).save(items[7].content),
            r"same size, got 9x9 for .*/7.png and 2x3 for .*/0.png",
        ),
        (lambda items: Image.new("RGB", (3, 2)).save(items[7].content), "/7.png has colors"),
        (
            lambda items: items.__setitem__(7, items[7]._replace(label=-1)),
            "/7.png has the label -1, and the 22 classes",
        ),
        (lambda items: items.__setitem__(7, items[7]._replace(label=22)), "/7.png has the label 22.* are 0 to 21"),
    ],
)
def test_what_cannot_be_used_is_named(numbered, change, message):
    change(numbered.items)
    with pytest.raises(UserError, match=message):
        take(numbered, 5)
    with pytest.raises(UserError, match=message):
        list(padded_batches(numbered, 4))


def test_a_batch_must_not_be_larger_than_the_set(numbered):
    with pytest.raises(UserError, match=r"--batch-size must be at most 11, .*22 training images for 2 process.*got 12"):
        train_batches(numbered, 12, seed=0, shard=(0, 2))


def test_a_folder_is_the_same_on_disk_and_in_memory(image_folder, tmp_path):
    options = data.Options(cache_dir=tmp_path / "cache")
    memory = data.load(f"folder:{image_folder}", options._replace(stream=False))
    disk = data.load(f"folder:{image_folder}", options._replace(stream=True))
    for name in ("name", "classes", "shape", "train_count", "test_count"):
        assert getattr(memory, name) == getattr(disk, name)
    np.testing.assert_array_equal(memory.mean, disk.mean)
    np.testing.assert_array_equal(memory.std, disk.std)
    np.testing.assert_array_equal(memory.train.images, np.stack([image for image, _ in disk.train]))
    np.testing.assert_array_equal(memory.train.labels, disk.train.labels)
    np.testing.assert_array_equal(memory.test.labels, disk.test.labels)


def test_fewer_test_images_are_the_same_on_disk_and_in_memory(image_folder, tmp_path):
    rng = np.random.default_rng(1)
    for number in range(9):
        image = Image.fromarray(rng.integers(0, 256, (6, 5)).astype(np.uint8))
        image.save(image_folder / "test" / "dog" / f"{number}.png")
    options = data.Options(cache_dir=tmp_path / "cache")
    memory, disk = (
        data.limit_test(data.load(f"folder:{image_folder}", options._replace(stream=stream)), 4).test
        for stream in (False, True)
    )
    assert len(disk) == 4
    np.testing.assert_array_equal(memory.images, np.stack([disk[i][0] for i in range(4)]))
    np.testing.assert_array_equal(memory.labels, disk.labels)
