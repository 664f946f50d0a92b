"""The setup of a run: its devices, data, and functions, with every option that depends on the data filled in."""

import dataclasses
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from .. import data as datasets
from .. import models
from ..data import augment
from ..devices import mesh, processes
from ..errors import UserError
from ..models.definition_order import definition_order
from ..options.config import Config, resolved
from ..recipe import attack
from ..step.steps import Steps
from ..step.steps import make as make_steps
from . import optimizer

_AUGMENT = {"none": None, "crop_flip": augment.crop_and_flip, "resized_crop": augment.resized_crop_and_flip}


class Setup(NamedTuple):
    """Everything that the runs of all seeds share.

    Attributes:
      config: the options, with those that depend on the data filled in.
      data: the dataset.
      batch_size: images per step.
      steps_per_epoch: steps per epoch.
      steps: the functions of one run.
      grid: the devices of one run; None for a single device.
    """

    config: Config
    data: datasets.Dataset
    batch_size: int
    steps_per_epoch: int
    steps: Steps
    grid: Mesh | None


def prepare(config: Config) -> Setup:
    """Loads the data, fills in the options that depend on it, and makes the functions of a run.

    Raises:
      UserError: for options that do not fit the data, the devices, or each other.
    """
    grid = mesh.make(config.mesh)
    processes.connect_devices(grid)
    data = _load(config)
    config = _fill_in(config, data)
    batch_size = config.batch_size
    assert batch_size
    _check_batch_size(batch_size, data, grid)
    steps_per_epoch = data.train_count // batch_size
    if config.steps_per_epoch:
        steps_per_epoch = min(steps_per_epoch, config.steps_per_epoch)
    steps = _make_steps(config, data, steps_per_epoch)
    optimizer.check(config, data, batch_size, steps)
    return Setup(config, data, batch_size, steps_per_epoch, steps, grid)


def _load(config: Config) -> datasets.Dataset:
    options = datasets.Options(
        cache_dir=config.cache_dir,
        tfds_data_dir=config.tfds_data_dir,
        image_size=config.image_size,
        train_split=config.train_split,
        test_split=config.test_split,
        stream=config.stream,
    )
    data = datasets.load(config.data, options)
    if len(data.classes) < 2:
        raise UserError(f"--data {data.name} must have at least 2 classes, got {', '.join(data.classes)}.")
    return datasets.limit_test(data, config.test_images)


def _fill_in(config: Config, data: datasets.Dataset) -> Config:
    """Returns the options with every default that depends on the data, so that `config.json` records what ran."""
    is_digits = data.name == "digits"
    is_color = data.shape[2] == 3
    config = resolved(dataclasses.replace(config, model=config.model or _default_model(is_digits, is_color)))
    config = attack.filled_in(config, is_digits=is_digits, is_color=is_color)
    return dataclasses.replace(
        config,
        batch_size=config.batch_size or (32 if is_digits else 128),
        augment=config.augment or ("crop_flip" if is_color else "none"),
        # Recorded because a machine with other memory, or with a cache, would choose another order of images.
        stream=not data.train.in_memory,
    )


def _default_model(is_digits: bool, is_color: bool) -> str:
    if is_digits:
        return "digits_cnn"
    return "resnet18" if is_color else "lenet5"


def _check_batch_size(batch_size: int, data: datasets.Dataset, grid: Mesh | None) -> None:
    images = data.train_count
    if images < batch_size:
        raise UserError(f"--batch-size must be at most the number of training images, {images}, got {batch_size}.")
    if batch_size % mesh.shares(grid):
        raise UserError(
            f"--batch-size must be a multiple of the {mesh.shares(grid)} devices that share a batch, got {batch_size}."
        )


def _make_steps(config: Config, data: datasets.Dataset, steps_per_epoch: int) -> Steps:
    name = config.model
    assert name
    assert config.augment
    assert config.normalization
    height, width, channels = data.shape
    resized_to = None
    if config.image_size and (height, width) != (config.image_size, config.image_size):
        resized_to = height = width = config.image_size

    def create(key: jax.Array) -> nnx.Module:
        options = {"init": config.init, "width": config.width, "dtype": config.dtype}
        return models.create(name, (height, width, channels), len(data.classes), key, **options)

    method = config.method
    order = definition_order(create) if config.optimizer == "adas" else None
    return make_steps(
        create,
        lambda key: optimizer.optimizer(config, steps_per_epoch, key, order),
        data,
        image_size=resized_to,
        augment=_AUGMENT[config.augment],
        attack=attack.attack(config),
        label_smoothing=config.label_smoothing,
        normalization=config.normalization,
        reparameterization=method.reparameterization(config, data, steps_per_epoch),
        keep_start=method.keeps_start,
    )
