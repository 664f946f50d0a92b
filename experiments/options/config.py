"""The options of `python -m experiments.train`."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tyro

from .. import files
from .method_options import GRADUAL, OPTIONS, SUPERMASKS, Method, names

Model = Literal[
    "digits_cnn",
    "lenet_300_100",
    "fcn",
    "lenet5",
    "conv2",
    "conv4",
    "conv6",
    "conv8",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet20",
    "resnet32",
    "resnet56",
    "elu_resnet20",
    "elu_resnet56",
    "elu_resnet110",
    "densenet121",
    "vit",
]
Augment = Literal["none", "crop_flip", "resized_crop"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop", "lion", "sgdw"]
Schedule = Literal["milestones", "cosine", "constant", "exponential", "plateau", "rewarmed"]
Normalization = Literal["dataset", "image"]
DType = Literal["float32", "bfloat16"]
Init = Literal["pytorch", "kaiming", "xavier"]
Allocation = Literal["global", "normalized", "uniform"]
Course = Literal["geometric", "cubic"]
Recipe = Literal["paper", "best"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a network on images and prunes it meanwhile.

    The defaults are the recipe of the FlipOut paper, scaled to the number of epochs: SGD with momentum 0.9, the
    learning rate x0.1 after 150/350 and 250/350 of the epochs, and k prunings that cut the epochs into k + 1 equal
    parts.
    """

    data: str = "digits"
    """digits, bundled 8x8 images that need no network; folder:PATH, a folder with train/<class>/* and test/<class>/*
    in any image format; tiny_imagenet, as its authors packed it; or, with the extra tfds, mnist, fashion_mnist,
    cifar10, cifar100, imagenette, and any other set of TensorFlow Datasets by its name."""
    model: Model | None = None
    """Network. Without it: digits_cnn for digits, lenet5 for other grey images, resnet18 for colour."""
    augment: Augment | None = None
    """What is done to training images: crop_flip, a random crop after padding by an eighth of each side, and a mirror
    image half of the time; resized_crop, a random part of a random shape brought back to full size, and a mirror
    image; or none. Without it: crop_flip for colour images, none for grey ones, signed_supermask and supermask."""
    image_size: int | None = None
    """Height and width to which all images are brought. Without it: as they are, or 224 for imagenette."""
    normalization: Normalization | None = None
    """What images are normalised by: mean and standard deviation of each channel of the data set, or of each image.
    Without it: image for signed_supermask and supermask, dataset for all others."""
    width: float = 1.0
    """Factor of the network's number of channels, to make it smaller or larger."""
    init: Init | None = None
    """How weights start: pytorch (uniform in +-1/sqrt(fan in)), kaiming (normal) or xavier (uniform). Without it: as
    the papers ran the network, kaiming for densenet121, pytorch for all others."""
    dtype: DType = "float32"
    """What the network computes in; weights, normalisation and loss are float32 always."""
    method: Method = "flipout"
    """What goes, and when; each method has options of its own, which --method NAME --help shows."""
    own: tyro.conf.Suppress[Any] = None
    """The options of the method; None for their defaults."""
    sparsity: float = 0.9375
    """Fraction of the prunable weights that are zero at the end, in [0, 1)."""
    recipe: Recipe = "paper"
    """What decides where an option is not given: paper, the recipe of the paper; or best, the one that came out best of
    a search at high sparsity, see docs/results.md: the learning rate along a cosine, the last pruning after half of the
    epochs, and noise that fades until then."""
    prunings: int | None = None
    """Number of prunings, each removing the same fraction of what is left. Without it: one for each halving, 4 for a
    sparsity of 0.9375."""
    course: Course = "geometric"
    """How the sparsity rises from pruning to pruning: geometric, each removes the same fraction of what is left, as in
    the paper; or cubic, much goes early and little late."""
    last_pruning: float | None = None
    """Part of the epochs after which the last pruning comes, in (0, 1); the others are evenly spaced before it. Without
    it: the parts between prunings, the one before the first and the one after the last are equally long, as in the
    paper: of 350 epochs and 10 prunings, every 32 epochs, the last after 320. With --recipe best: 0.5."""
    allocation: Allocation = "global"
    """From which layers: global, all ranked together; normalized, likewise, by scores in means of each layer; or
    uniform, the same sparsity in each."""
    min_kept_per_layer: int = 0
    """Weights that each layer keeps at least, with an allocation other than uniform."""
    epochs: int = 140
    """Passes over the training images. The paper's number is 350."""
    batch_size: int | None = None
    """Images a step. Without it: 128, the paper's number, or 32 for digits, which has few images."""
    optimizer: Optimizer | None = None
    """Optimiser under the pruning; sgdw is sgd whose weight decay the learning rate does not multiply. Without it: sgdw
    for signed_supermask and supermask, sgd for all others."""
    learning_rate: float | None = None
    """Highest learning rate. Without it: 0.1 for sgd, and 0.02 for fcn, lenet5 and conv2 to conv8, which have no
    normalisation; for sgdw 0.05, 0.04 for conv2 and 0.3 for elu_resnet; 0.001 for adam, adamw and rmsprop; 0.0001 for
    lion."""
    schedule: Schedule | None = None
    """Course of the learning rate after the warm-up: milestones (steps down), cosine (to 0), constant, exponential
    (x0.9 after each tenth of the epochs, for the decay of sgdw too), plateau (x0.2, at most 5 times, when the training
    loss has not fallen in 15/110 of the epochs), or rewarmed (to its highest after each pruning, and from there to 0
    along a cosine until the next). Without it: for signed_supermask and supermask exponential, or plateau with
    elu_resnet; for all others milestones, or cosine with --recipe best."""
    milestones: tuple[int, ...] | None = None
    """Epochs after which the learning rate drops to a tenth. Without it: 150/350 and 250/350 of the epochs."""
    warmup_epochs: int = 0
    """Epochs over which the learning rate rises from 0 in a straight line."""
    momentum: float = 0.9
    """Momentum of sgd, in [0, 1)."""
    nesterov: bool | None = None
    """Nesterov's form of the momentum of sgd and sgdw. Without it: for sgdw alone."""
    beta1: float = 0.9
    """Decay of the mean of gradients, for adam, adamw and lion, in [0, 1)."""
    beta2: float | None = None
    """Decay of the mean of squares for adam, adamw and rmsprop, and of lion's momentum, in [0, 1). Without it: 0.999
    for adam and adamw, 0.9 for rmsprop, 0.99 for lion."""
    epsilon: float = 1e-8
    """What adam, adamw and rmsprop add to the root of the mean square."""
    weight_decay: float | None = None
    """Weight decay, as a factor of the weight. sgd, adam and rmsprop add it to the gradient; adamw and lion multiply
    it by the learning rate alone, sgdw by nothing. Without it: 0.0005, or 0.0003 for sgdw with elu_resnet."""
    decay: Literal["all", "kernels"] = "all"
    """Parameters that decay: all, as in the paper, or kernels, which spares biases and normalisation."""
    clip_norm: float | None = None
    """Largest norm of the gradient over all parameters, noise included. Without it: no limit."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes while training, in [0, 1)."""
    seed: int = 0
    """Seed of initial weights, batches and noise."""
    seeds: int = 1
    """Number of runs, with the seeds seed, seed + 1, ...; each has a folder of its own, and the summary has means and
    standard deviations."""
    seeds_at_once: int | None = None
    """Runs in one program. Without it: as many as fit in memory on an accelerator, one on CPU."""
    steps_per_epoch: int | None = None
    """At most so many steps an epoch, to try things out. Without it: all images, less a last batch that is not full."""
    eval_every: int = 1
    """Epochs from one test to the next; the last epoch is always tested."""
    test_images: int | None = None
    """Test on the first so many test images of a fixed shuffle. Without it: on all."""
    output_dir: Path | None = None
    """Where to write. Without it: a new folder under runs/."""
    overwrite: bool = False
    """Replace the run that the output folder holds."""
    resume: Path | None = None
    """Continue the run of this folder from its last checkpoint, with the options it was started with."""
    save_minutes: float = 10.0
    """Minutes from one checkpoint to the next. A run that is stopped by Ctrl-C or SIGTERM also writes one."""
    save_epochs: int | None = None
    """Also write a checkpoint every so many epochs. Without it: by the minutes alone."""
    keep_checkpoints: int = 2
    """Number of checkpoints that stay, the newest. When the run has finished, they go."""
    keep_best: bool = False
    """Also keep a checkpoint of the epoch with the highest test accuracy after the last pruning, for good."""
    tensorboard: bool = False
    """Also write events for TensorBoard."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Without it: flipout_jax in the user's cache folder."""
    tfds_data_dir: Path | None = None
    """Where TensorFlow Datasets keeps its data. Without it: ~/tensorflow_datasets."""
    train_split: str = "train"
    """What to train on, of a set of TensorFlow Datasets, such as train[:90%]."""
    test_split: str | None = None
    """What to test on, of a set of TensorFlow Datasets. Without it: test, or validation where there is no test."""
    stream: bool | None = None
    """True leaves images on disk and decodes them as training goes on; False decodes all beforehand. Without it: True
    where the decoded images would take more than half of the memory."""
    mesh: str | None = None
    """Grid of all devices: data=8 gives each of 8 devices its share of a batch, and data=4,model=2 also cuts the
    parameters, masks and flips in two. Without it: one device, or, of several processes, data over all."""
    coordinator: str | None = None
    """Where the first of several processes is found, as HOST:PORT; all are started with the same options, and each with
    its own --process-id. Or auto, on a cluster that JAX detects, such as one of Slurm, Open MPI or Cloud TPU."""
    num_processes: int | None = None
    """Number of processes, with --coordinator HOST:PORT."""
    process_id: int | None = None
    """Number of this process, from 0, with --coordinator HOST:PORT."""

    def __post_init__(self):
        """Fills in the options of the method.

        Raises:
          ValueError: for those of another one.
        """
        of_method = OPTIONS.get(self.method)
        if of_method is None:
            # The check of the options says so.
            return
        if self.own is None:
            object.__setattr__(self, "own", of_method())
        elif not isinstance(self.own, of_method):
            raise ValueError(f"`own` must be the options of {self.method}, got {self.own!r}.")


# Where a process computes, and with which others; a run may go on elsewhere.
MACHINES = {"mesh", "coordinator", "num_processes", "process_id"}
# What says where and how a run reads, writes and computes, and nothing of what it computes.
INCIDENTAL = {
    *MACHINES,
    *("output_dir", "overwrite", "resume", "tensorboard", "eval_every", "cache_dir", "tfds_data_dir", "seeds_at_once"),
    *("save_minutes", "save_epochs", "keep_checkpoints", "keep_best"),
}


def with_method(config: Config, method: str, **own: Any) -> Config:
    """The options with another method, and with those of its own options that are given."""
    options: Any = OPTIONS[method](**own)
    chosen: Any = method
    return dataclasses.replace(config, method=chosen, own=options)


def is_elu_resnet(config: Config) -> bool:
    """Whether the network is a residual one of Signed Supermask, which has a recipe of its own."""
    return config.model is not None and config.model.startswith("elu_resnet")


def resolved(config: Config) -> Config:
    """The options with the recipe that goes with the method and the network, where none is given."""
    masks, residual = config.method in SUPERMASKS, is_elu_resnet(config)
    optimizer = config.optimizer or ("sgdw" if masks else "sgd")
    of_masks: Schedule = "plateau" if residual else "exponential"
    decay = 3e-4 if residual and optimizer == "sgdw" else 5e-4
    best = config.recipe == "best" and not masks and config.method != "sculpt"
    own, last_pruning = config.own, config.last_pruning
    if own is not None and "noise_course" in names(config.method) and own.noise_course is None:
        own = dataclasses.replace(own, noise_course="linear" if best else "constant")
    if best and config.method in GRADUAL and last_pruning is None:
        last_pruning = 0.5
    return dataclasses.replace(
        config,
        own=own,
        last_pruning=last_pruning,
        optimizer=optimizer,
        schedule=config.schedule or (of_masks if masks else "cosine" if best else "milestones"),
        nesterov=optimizer == "sgdw" if config.nesterov is None else config.nesterov,
        weight_decay=decay if config.weight_decay is None else config.weight_decay,
        normalization=config.normalization or ("image" if masks else "dataset"),
    )


def milestones(config: Config) -> tuple[int, ...]:
    """The epochs after which the learning rate drops to a tenth."""
    if resolved(config).schedule != "milestones" or config.method == "sculpt":
        return ()
    if config.milestones is not None:
        return config.milestones
    of = 500 if config.method == "hoyer_threshold" else 350
    return tuple(sorted({config.epochs * at // of for at in (150, 250)} - {0}))


def as_json(config: Config) -> dict[str, Any]:
    """The options as JSON can hold them, those of the method beside the others."""
    stored = dataclasses.asdict(config)
    stored |= stored.pop("own") or {}
    return {k: str(v) if isinstance(v, Path) else v for k, v in stored.items()}


def digest(config: Config) -> str:
    """Ten hexadecimal digits that stand for what a run computes, its seed left out; one for all runs of a cell."""
    computed = {name: value for name, value in as_json(resolved(config)).items() if name not in INCIDENTAL}
    told = json.dumps({**computed, "seed": None, "seeds": None}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:10]


def from_json(stored: dict[str, Any]) -> Config:
    """The options that `as_json` has written.

    Raises:
      ValueError: for options that this program does not have.
      TypeError: for a value of another type than the option's.
    """
    shared = {field.name for field in dataclasses.fields(Config)} - {"own"}
    method = stored.get("method", "flipout")
    if not isinstance(method, str) or method not in OPTIONS:
        raise ValueError(f"it has a method that is not known here: {method!r}")
    own = {name: stored[name] for name in names(method) if name in stored}
    values = {name: value for name, value in stored.items() if name not in own}
    if values.keys() - shared:
        raise ValueError(f"it has options that are not known here: {', '.join(sorted(values.keys() - shared))}")
    for name in ("output_dir", "resume", "cache_dir", "tfds_data_dir"):
        values[name] = None if values.get(name) is None else Path(values[name])
    if isinstance(values.get("milestones"), list):
        values["milestones"] = tuple(values["milestones"])
    for given, wanted in ((values, get_type_hints(Config)), (own, get_type_hints(OPTIONS[method]))):
        for name in given:
            files.check_type(name, given[name], wanted[name])
    return Config(**values, own=OPTIONS[method](**own))
