"""All options of a run, and their storage as JSON."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from .. import files, methods
from ..errors import UserError
from ..methods import Method
from ..methods.flipout import Flipout
from ..recipe.learning_rate import peak_learning_rate
from ..recipe.ranges import AT_LEAST_1, NOT_NEGATIVE
from ..recipe.training_options import TrainingOptions, is_elu_resnet


@dataclasses.dataclass(frozen=True)
class Config(TrainingOptions):
    """Trains a network on images and prunes it during training.

    The defaults are the recipe of the FlipOut paper, scaled to the number of epochs: SGD with momentum 0.9, the
    learning rate x0.1 after 150/350 and 250/350 of the epochs, and k prunings that divide the epochs into k + 1 equal
    parts.
    """

    method: Method = Flipout()
    """The pruning method and its own options. A name stands for the method with its default options."""
    seeds_at_once: Annotated[int | None, AT_LEAST_1] = None
    """Number of seeds that one program trains at once. Default: as many as fit in memory on an accelerator, one on
    CPU."""
    eval_every: Annotated[int, AT_LEAST_1] = 1
    """Number of epochs from one test to the next; the last epoch is always tested."""
    output_dir: Path | None = None
    """Folder for the results. Default: a new folder under runs/."""
    overwrite: bool = False
    """Replace an existing run in the output folder."""
    resume: Path | None = None
    """Continue the run in this folder from its last checkpoint, with the options that it was started with."""
    save_minutes: Annotated[float, NOT_NEGATIVE] = 10.0
    """Minutes from one checkpoint to the next. A run also writes a checkpoint when Ctrl-C or SIGTERM stops it."""
    save_epochs: Annotated[int | None, AT_LEAST_1] = None
    """Number of epochs after which a checkpoint is also written. Default: only --save-minutes decides."""
    keep_checkpoints: Annotated[int, AT_LEAST_1] = 2
    """Number of newest checkpoints to keep. They are removed when the run has finished."""
    keep_best: bool = False
    """Also keep a checkpoint of the epoch with the highest test accuracy after the last pruning, permanently."""
    tensorboard: bool = False
    """Also write events for TensorBoard."""
    cache_dir: Path | None = None
    """Folder for decoded images. Default: flipout_jax in the user's cache folder."""
    tfds_data_dir: Path | None = None
    """Folder in which TensorFlow Datasets keeps its data. Default: ~/tensorflow_datasets."""
    mesh: str | None = None
    """Mesh of all devices: data=8 gives each of 8 devices its share of every batch, and data=4,model=2 also splits the
    parameters, masks and flips in two. Default: one device, or data over all devices of several processes."""
    coordinator: str | None = None
    """Address of the first of several processes, HOST:PORT. Start all processes with the same options, except for
    --process-id. Or auto, on a cluster that JAX detects, such as Slurm, Open MPI or Cloud TPU."""
    num_processes: int | None = None
    """Number of processes, with --coordinator HOST:PORT."""
    process_id: int | None = None
    """Number of this process, from 0, with --coordinator HOST:PORT."""

    def __post_init__(self):
        """Replaces the name of a method by the method."""
        if isinstance(self.method, str):
            object.__setattr__(self, "method", methods.find(self.method)())


# The options that decide on which devices and in which processes a run computes. A run may resume on others.
MACHINES = {"mesh", "coordinator", "num_processes", "process_id"}
# The options that decide where and how a run reads, writes and computes, but not what it computes.
INCIDENTAL = {field.name for field in dataclasses.fields(Config)} - {
    *("method", *(field.name for field in dataclasses.fields(TrainingOptions)))
}


def with_method(config: Config, name: str, **options: Any) -> Config:
    """Returns the options with another method, which has the given options of its own."""
    return dataclasses.replace(config, method=methods.find(name)(**options))


def resolved(config: Config) -> Config:
    """Returns the options with all defaults that depend on the recipe, the method and the network."""
    method = config.method
    defaults = method.defaults(config)
    is_best = config.recipe == "best"
    optimizer = config.optimizer or defaults.get("optimizer", "sgd")
    last_pruning = config.last_pruning
    if last_pruning is None and is_best and method.is_gradual:
        last_pruning = 0.5
    schedule = config.schedule or ("constant" if optimizer == "adas" else defaults.get("schedule"))
    if schedule is None:
        schedule = "cosine" if is_best and method.has_schedule else "milestones"
    weight_decay = config.weight_decay
    if weight_decay is None:
        weight_decay = 3e-4 if optimizer == "sgdw" and is_elu_resnet(config) else 5e-4
    config = dataclasses.replace(
        config,
        method=method.resolved(config),
        last_pruning=last_pruning,
        optimizer=optimizer,
        schedule=schedule,
        nesterov=optimizer == "sgdw" if config.nesterov is None else config.nesterov,
        weight_decay=weight_decay,
        normalization=config.normalization or defaults.get("normalization", "dataset"),
        augment=config.augment or defaults.get("augment"),
        allocation=config.allocation or defaults.get("allocation", "global"),
        milestones=_milestones(config, schedule),
    )
    if config.model is None:
        # The learning rate depends on the network.
        return config
    return dataclasses.replace(config, learning_rate=peak_learning_rate(config))


def _milestones(config: Config, schedule: str) -> tuple[int, ...]:
    if schedule != "milestones" or not config.method.has_schedule:
        return ()
    return config.method.milestones(config) if config.milestones is None else config.milestones


def as_json(config: Config) -> dict[str, Any]:
    """Returns the options as a dictionary for JSON, with the method's own options among the others."""
    stored = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    stored |= {"method": config.method.name(), **dataclasses.asdict(config.method)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in stored.items()}


def digest(config: Config) -> str:
    """Ten hexadecimal digits that stand for what a run computes without its seed, the same for all runs of a cell."""
    computed = {name: value for name, value in as_json(resolved(config)).items() if name not in INCIDENTAL}
    text = json.dumps({**computed, "seed": None, "seeds": None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def from_json(stored: dict[str, Any]) -> Config:
    """Returns the options of a dictionary from `as_json`.

    Raises:
      ValueError: for an unknown method or unknown options.
      TypeError: for a value of another type than the option's.
    """
    values = dict(stored)
    name = values.pop("method", "flipout")
    files.check_type("method", name, str)
    try:
        method = methods.find(name)
    except UserError as error:
        raise ValueError(f"it has a method that is not known here: {name!r}") from error
    own = {name: values.pop(name) for name in methods.option_names(method) if name in values}
    shared = {field.name for field in dataclasses.fields(Config)}
    if values.keys() - shared:
        raise ValueError(f"it has options that are not known here: {', '.join(sorted(values.keys() - shared))}")
    for name in ("output_dir", "resume", "cache_dir", "tfds_data_dir"):
        values[name] = None if values.get(name) is None else Path(values[name])
    if isinstance(values.get("milestones"), list):
        values["milestones"] = tuple(values["milestones"])
    for given, hints in ((values, get_type_hints(Config)), (own, get_type_hints(method))):
        for name, value in given.items():
            files.check_type(name, value, hints[name])
    return Config(**values, method=method(**own))
