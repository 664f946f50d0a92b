"""The pictures of the method: what is drawn is what a training did."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from experiments import method_pictures
from experiments.options.config import with_method


@pytest.fixture(scope="module")
def training():
    config = dataclasses.replace(method_pictures._CONFIG, epochs=5)
    return method_pictures.train(with_method(config, "flipout"))


@pytest.mark.slow
def test_flips_are_those_of_the_walks(training):
    first = training.prunings[0].step
    until = training.walks[: first + 1]
    # The step that prunes makes zeros of what goes, after it has counted.
    calm = training.walks[first] != 0
    counted = (np.diff(np.sign(until), axis=0) != 0).sum(0)
    np.testing.assert_array_equal(training.flips[calm], counted[calm])
    assert training.flips.max() > 3


@pytest.mark.slow
def test_each_pruning_takes_the_lowest_scores(training):
    assert [pruning.step for pruning in training.prunings] == [42, 84, 126, 168]
    for before, after in zip(training.prunings[:-1], training.prunings[1:], strict=True):
        assert len(after.kept) == before.kept.sum() == -(-len(before.kept) // 2)
    for fractions in training.kept.values():
        assert len(fractions) == 4
        assert all(a >= b for a, b in zip([1.0, *fractions], fractions, strict=False))


@pytest.mark.slow
def test_all_pictures_are_drawn(training, tmp_path):
    figures = [
        method_pictures.walks(training),
        method_pictures.flips_and_magnitude(training.prunings[0]),
        method_pictures.kept({"flipout": training.kept, "magnitude": training.kept}),
    ]
    for i, figure in enumerate(figures):
        method_pictures.plots.save(figure, tmp_path / f"{i}.png")
        with Image.open(tmp_path / f"{i}.png") as image:
            assert len(np.unique(image.convert("L").resize((64, 64)))) > 10
