"""What the tests of the runs share: a quick configuration, and a folder of images."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from experiments.config import Config


@pytest.fixture
def quick(tmp_path):
    """`quick(**options)`: a configuration of a few steps that writes below the test's folder."""

    def quick(**options):
        base = Config(epochs=3, steps_per_epoch=2, batch_size=16, test_images=40, output_dir=tmp_path / "run")
        return dataclasses.replace(base, **options)

    return quick


@pytest.fixture
def image_folder(tmp_path):
    """A folder of 2 classes with 3 training images and 1 test image each, grey, of 6x5 pixels."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                save(root / split / name / f"{i}.png", rng.integers(0, 256, (6, 5)))
    return root


def save(file, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file)
