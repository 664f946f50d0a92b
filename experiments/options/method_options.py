"""The options of each method, which no other method has."""

import dataclasses
from typing import Any, Literal, get_args

Method = Literal[
    "flipout",
    "magnitude",
    "magnitude_noise",
    "random",
    "gradient",
    "movement",
    "taylor",
    "fisher",
    "wanda",
    "snip",
    "grasp",
    "synflow",
    "force",
    "random_init",
    "magnitude_init",
    "hoyer",
    "hoyer_threshold",
    "lottery",
    "drive",
    "sculpt",
    "consensus",
    "signed_supermask",
    "supermask",
    "edge_popup",
    "powerprop",
    "ste",
    "acdc",
    "dense",
]


NoiseCourse = Literal["constant", "linear", "pruning"]


@dataclasses.dataclass(frozen=True)
class Flipout:
    """FlipOut: while training, the weights go that keep changing their sign; arXiv 2009.02594."""

    noise_scale: float = 1.0
    """Gradient noise, in root mean squares of each tensor's gradient."""
    noise_course: NoiseCourse | None = None
    """How the noise goes on: constant, as in the paper; linear, down to none at the last pruning; or pruning, constant
    until the last pruning, and none after it. Without it: constant, or linear with --recipe best."""
    power: float = 2.0
    """Exponent of the magnitude in the saliency |w|^power / (flips + 1); 0 looks at the flips alone."""
    flip_decay: float = 1.0
    """What a count of flips keeps of itself at each step, in (0, 1]; 1 counts all flips since the start."""
    hoyer_strength: float = 0.0
    """Factor of a Hoyer-Square penalty on all parameters; see hoyer."""


@dataclasses.dataclass(frozen=True)
class Magnitude:
    """While training, the smallest weights go."""


@dataclasses.dataclass(frozen=True)
class MagnitudeNoise:
    """As magnitude, with FlipOut's noise: the control that tells what the flips add."""

    noise_scale: float = 1.0
    """Gradient noise, in root mean squares of each tensor's gradient."""
    noise_course: NoiseCourse | None = None
    """How the noise goes on; see flipout."""
    hoyer_strength: float = 0.0
    """Factor of a Hoyer-Square penalty on all parameters; see hoyer."""


@dataclasses.dataclass(frozen=True)
class Random:
    """While training, any weights go."""


@dataclasses.dataclass(frozen=True)
class Gradient:
    """While training, the lowest |w g| go, averaged over steps."""

    saliency_decay: float = 0.9
    """What the average over steps keeps of itself at each, in [0, 1); 0 looks at the last step alone."""


@dataclasses.dataclass(frozen=True)
class Movement:
    """While training, the weights go that move towards 0; arXiv 2005.07683."""


@dataclasses.dataclass(frozen=True)
class Taylor:
    """While training, the weights go whose removal changes the loss least; arXiv 1611.06440 and 1906.10771."""

    order: int = 1
    """Order of the expansion of the loss, 1 or 2."""
    saliency_decay: float = 0.9
    """What the average over steps keeps of itself at each, in [0, 1)."""


@dataclasses.dataclass(frozen=True)
class Fisher:
    """While training, the lowest w^2 F / 2 go, F the mean of squared gradients; arXiv 1801.05787."""


@dataclasses.dataclass(frozen=True)
class Wanda:
    """While training, the lowest |w| times the norm of what it is multiplied by go; arXiv 2306.11695.

    Its authors compare the weights of one output with each other, after training and without more of it; here
    --allocation says which are compared.
    """

    score_batches: int = 1
    """Batches of training images that the norms are of."""


@dataclasses.dataclass(frozen=True)
class Snip:
    """Before training, the lowest |w g| go; arXiv 1810.02340."""

    iterations: int = 1
    """Prunings, each on gradients of the network that is left: 1 is the paper's, more is iterative SNIP."""
    score_batches: int = 1
    """Batches of training images that the gradient is the mean of."""


@dataclasses.dataclass(frozen=True)
class Grasp:
    """Before training, the weights go without which the gradient flows best; arXiv 2002.07376."""

    samples_per_class: int = 10
    """Training images of each class that the scores are of."""
    temperature: float = 200.0
    """What the logits are divided by, for the scores."""


@dataclasses.dataclass(frozen=True)
class Synflow:
    """Before training and without data, the weights go that the least flows through; arXiv 2006.05467."""

    iterations: int = 100
    """Prunings, each on the flow through the network that is left."""


@dataclasses.dataclass(frozen=True)
class Force:
    """Before training, the lowest |w g| go in several rounds, and weights may return; arXiv 2006.09081."""

    iterations: int = 60
    """Rounds, each on gradients of the network that is left."""
    score_batches: int = 1
    """Batches of training images that the gradient is the mean of."""


@dataclasses.dataclass(frozen=True)
class RandomInit:
    """Before training, any weights go."""


@dataclasses.dataclass(frozen=True)
class MagnitudeInit:
    """Before training, the smallest weights go."""


@dataclasses.dataclass(frozen=True)
class Hoyer:
    """As magnitude, with the Hoyer-Square penalty on the loss; arXiv 1908.09979."""

    strength: float = 1e-4
    """Factor of the penalty, the sum over tensors of (sum |w|)^2 / sum w^2."""
    penalised: Literal["all", "kernels"] = "all"
    """Parameters with a penalty: all, as FlipOut's authors had it, or the prunable kernels."""


@dataclasses.dataclass(frozen=True)
class HoyerThreshold:
    """Hoyer-Square as FlipOut's authors ran it: once, all weights below a threshold go, and the penalty ends.

    The sparsity follows from the strength, and --sparsity has no part in it. The pruning is after 350/500 of the
    epochs, the rest is fine-tuning, and the learning rate drops after 150/500 and 250/500 of them.
    """

    strength: float = 1e-4
    """Factor of the penalty, the sum over tensors of (sum |w|)^2 / sum w^2."""
    penalised: Literal["all", "kernels"] = "all"
    """Parameters with a penalty: all, as FlipOut's authors had it, or the prunable kernels."""
    threshold: float = 1e-4
    """Magnitude below which a weight goes."""


@dataclasses.dataclass(frozen=True)
class Lottery:
    """Lottery tickets: train, remove the smallest weights, rewind, again and again; arXiv 1803.03635, 1912.05671.

    The first training has --epochs epochs, and the others have those after the one that is rewound to: weights,
    optimiser, learning rate and the order of images. The last training is of the ticket. An epoch that ends with a
    pruning is tested before it.
    """

    rounds: int | None = None
    """Prunings, each followed by a training. Without it: one for each halving, 4 for a sparsity of 0.9375."""
    rewind_epochs: int = 0
    """Epochs of the first training to which all is rewound; 0 is initialisation."""


@dataclasses.dataclass(frozen=True)
class Drive:
    """After a few dense epochs the lowest of |w|, |w g| and |g| together go, weights start anew; arXiv 2404.03687.

    The dense epochs come before the --epochs of the training. The last of them is tested before the pruning.
    """

    dense_epochs: int = 2
    """Epochs before the pruning."""
    iterations: int = 10
    """Rounds of the pruning, each on gradients of the network that is left."""
    score_batches: int = 1
    """Batches of training images that the gradient is the mean of."""


@dataclasses.dataclass(frozen=True)
class Sculpt:
    """SCULPT-ing: a sparse network, a learning rate in cycles, and one more pruning by magnitude; arXiv 2406.02773.

    The learning rate has a course of its own: it falls from its peak to 0 along a cosine in each cycle.
    """

    initial: Literal["random", "magnitude", "snip", "synflow"] = "random"
    """How the mask is chosen before training."""
    initial_sparsity: float | None = None
    """Sparsity before training. Without it: half-way to the last one, with the root of its density."""
    cycles: int = 3
    """Cycles of the learning rate before the pruning; one of the same length follows it."""


@dataclasses.dataclass(frozen=True)
class Consensus:
    """Channels with gates that are trained with the weights, and pushed to 0 or 1; arXiv 2302.10798.

    The sparsity follows from the options, and --sparsity has no part in it. Gates are on the channels that each layer
    reads, the first one apart, and at the end what is behind closed gates goes.
    """

    polarization: float = 1.0
    """Factor of the penalty that pushes gates to 0 or 1, a mean over gates."""
    gate_strength: float = 1.0
    """Factor of the penalty that closes gates, a mean over gates."""


@dataclasses.dataclass(frozen=True)
class SignedSupermask:
    """Random weights that stay; what is trained is which to keep, hide or invert; arXiv 2201.13361.

    The sparsity follows from the weight decay, and --sparsity has no part in it. Without other options the recipe is
    the paper's: sgdw with Nesterov, a learning rate and a decay that fall in steps, images normalised one by one.
    """

    mask_threshold: float | None = None
    """Threshold of each layer, as a fraction of its largest mask at the start. Without it: 0.75 for elu_resnet, and
    0.14 for all others, which leaves the published number of weights."""
    weights: Literal["elus", "he", "xavier"] = "elus"
    """Magnitude of the weights: elus is sqrt(3 / fan in), he sqrt(2 / fan in), xavier sqrt(2 / (fan in + fan out))."""


@dataclasses.dataclass(frozen=True)
class Supermask:
    """As signed_supermask, but weights are kept or hidden, and none is inverted; arXiv 1905.01067."""

    mask_threshold: float | None = None
    """Threshold of each layer; see signed_supermask."""
    weights: Literal["elus", "he", "xavier"] = "elus"
    """Magnitude of the weights; see signed_supermask."""


@dataclasses.dataclass(frozen=True)
class EdgePopup:
    """Random weights that stay; in each layer those with the highest trained scores are kept; arXiv 1911.13299."""

    weights: Literal["elus", "he", "xavier"] = "he"
    """Magnitude of the weights, before it is divided by the root of the density; see signed_supermask."""


@dataclasses.dataclass(frozen=True)
class Powerprop:
    """As magnitude, on weights that are a power of what is trained, so that small ones stay small; arXiv 2110.00296."""

    alpha: float = 2.0
    """Exponent: w = theta |theta|^(alpha - 1); 1 is magnitude pruning alone."""


@dataclasses.dataclass(frozen=True)
class Ste:
    """Sparse forward, dense backward: hidden weights go on learning and may return; arXiv 1308.3432."""

    score: Literal["magnitude", "random"] = "magnitude"
    """What is kept: the largest weights of each step, or any."""


@dataclasses.dataclass(frozen=True)
class Acdc:
    """AC/DC: training alternates between a sparse and the dense network, and ends sparse; arXiv 2106.12379."""

    cycles: int = 5
    """Sparse phases. They and the dense ones between them are equally long, the first dense one half of that, and the
    last sparse one half longer."""


@dataclasses.dataclass(frozen=True)
class Dense:
    """Nothing goes."""


Options = (
    Flipout
    | Magnitude
    | MagnitudeNoise
    | Random
    | Gradient
    | Movement
    | Taylor
    | Fisher
    | Wanda
    | Snip
    | Grasp
    | Synflow
    | Force
    | RandomInit
    | MagnitudeInit
    | Hoyer
    | HoyerThreshold
    | Lottery
    | Drive
    | Sculpt
    | Consensus
    | SignedSupermask
    | Supermask
    | EdgePopup
    | Powerprop
    | Ste
    | Acdc
    | Dense
)
OPTIONS: dict[str, Any] = dict(zip(get_args(Method), get_args(Options), strict=True))
# Prune in several steps while they train.
GRADUAL = {
    "flipout",
    "magnitude",
    "magnitude_noise",
    "random",
    "gradient",
    "movement",
    "taylor",
    "fisher",
    "wanda",
    "hoyer",
    "powerprop",
    "ste",
}
# The number of weights that they keep is not what --sparsity asks for.
WITHOUT_TARGET = {"dense", "hoyer_threshold", "consensus", "signed_supermask", "supermask"}
# Train masks over weights that stay, which weight decay makes sparse.
SUPERMASKS = {"signed_supermask", "supermask"}


def names(method: str) -> list[str]:
    """The names of a method's own options."""
    return [field.name for field in dataclasses.fields(OPTIONS[method])]


def owners(option: str) -> list[str]:
    """The methods that have an option of this name."""
    return [method for method in OPTIONS if option in names(method)]
