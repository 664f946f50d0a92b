"""The options that decide what a run computes, except for its pruning method."""

import dataclasses
from typing import Annotated, Literal

from ..models import DType, Init
from ..step.inputs import Normalization
from .ranges import AT_LEAST_1, FRACTION, INNER_FRACTION, NOT_NEGATIVE, POSITIVE, Range

Augment = Literal["none", "crop_flip", "resized_crop"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop", "lion", "sgdw", "adas"]
Schedule = Literal["milestones", "cosine", "constant", "exponential", "plateau", "cosine_restarts"]
Allocation = Literal["global", "normalized", "uniform", "erk", "lamp", "per_output"]
SparsitySchedule = Literal["geometric", "cubic", "linear"]
Recipe = Literal["paper", "best"]
Adversarial = Literal["none", "fgsm", "pgd"]
Parameters = Literal["all", "kernels"]

_SEED = Range("from 0 to 4294967295", lambda x: 0 <= x < 2**32)
_SEEDS = Range("from 1 to 10000", lambda x: 1 <= x <= 10_000)
_RADIUS = Range("in (0, 1], in units of the range of pixels", lambda x: 0 < x <= 1)


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """The options of every method. `options.config.resolved` fills in those that are left out."""

    data: str = "digits"
    """Data set: digits, bundled 8x8 images that need no download; folder:PATH, a folder with train/<class>/* and
    test/<class>/* in any image format; tiny_imagenet, as its authors packed it; or, with the extra tfds, mnist,
    fashion_mnist, cifar10, cifar100, imagenette, or the name of any other data set of TensorFlow Datasets."""
    model: str | None = None
    """Network: digits_cnn, lenet_300_100, fcn, lenet5, conv2, conv4, conv6, conv8, vgg11, vgg13, vgg16, vgg19,
    resnet18, resnet34, resnet50, resnet20, resnet32, resnet56, elu_resnet20, elu_resnet56, elu_resnet110, densenet121,
    vit; or package.module:CLASS, a network of your own. Default: digits_cnn for digits, lenet5 for other gray images,
    resnet18 for color images."""
    augment: Augment | None = None
    """Augmentation of training images: crop_flip, a random crop after padding by an eighth of each side, and a random
    horizontal flip; resized_crop, a random crop of random size and shape, resized to full size, and a random horizontal
    flip; or none. Default: crop_flip for color images, none for gray ones and for signed_supermask and supermask."""
    image_size: Annotated[int | None, AT_LEAST_1] = None
    """Height and width to which all images are resized. Default: no resizing, except to 224 for imagenette."""
    normalization: Normalization | None = None
    """Statistics that normalize the images: the mean and standard deviation of each channel of the data set, or those
    of each image. Default: image for signed_supermask and supermask, dataset for all others."""
    width: Annotated[float, POSITIVE] = 1.0
    """Factor that multiplies the network's numbers of channels."""
    init: Init | None = None
    """Initial weights: pytorch (uniform in +-1/sqrt(fan in)), kaiming (normal) or xavier (uniform). Default: as in the
    papers, which is kaiming for densenet121 and pytorch for all others."""
    dtype: DType = "float32"
    """Type in which the network computes; weights, normalization and loss are always float32."""
    sparsity: Annotated[float, FRACTION] = 0.9375
    """Fraction of the prunable weights that are zero at the end, in [0, 1)."""
    recipe: Recipe = "paper"
    """Defaults of the options that are left out: paper, as in the paper; or best, the best recipe of a search at high
    sparsity, see docs/results.md: a cosine learning rate, the last pruning after half of the epochs, and noise that
    fades out until then."""
    prunings: Annotated[int | None, AT_LEAST_1] = None
    """Number of prunings. Default: one for each halving of the number of weights, such as 4 for a sparsity of
    0.9375."""
    sparsity_schedule: SparsitySchedule = "geometric"
    """Schedule of the sparsity: geometric, where each pruning removes the same fraction of the remaining weights, as in
    the paper; linear, where each removes as many; or cubic, where the first prunings remove most of the weights."""
    last_pruning: Annotated[float | None, INNER_FRACTION] = None
    """Fraction of the epochs after which the last pruning comes, in (0, 1); the others are evenly spaced before it.
    Default: prunings divide the epochs into equal parts, as in the paper: with 350 epochs and 10 prunings, there is one
    every 32 epochs, and the last comes after 320. With --recipe best, and with --method granet and granet_st: 0.5."""
    allocation: Allocation | None = None
    """How sparsity is shared across layers: global ranks all weights together; normalized does so too, but divides each
    score by the mean score of its layer; uniform gives each layer the same sparsity, and per_output each output unit;
    erk gives each layer a sparsity by its shape, as in RigL; lamp ranks weights by their part of the sum of the squared
    scores of their layer, which --method flipout does not square again.
    Default: global; per_output with --method wanda; erk with set and rigl."""
    min_kept_per_layer: Annotated[int, NOT_NEGATIVE] = 0
    """Minimum number of weights that each layer keeps, with --allocation global or normalized."""
    epochs: Annotated[int, AT_LEAST_1] = 140
    """Passes over the training images. The paper's number is 350."""
    batch_size: Annotated[int | None, AT_LEAST_1] = None
    """Images in each step. Default: 128, as in the paper, or 32 for digits, which has few images."""
    optimizer: Optimizer | None = None
    """Optimizer; sgdw is sgd with a weight decay that is not multiplied by the learning rate. adas is sgd with a
    learning rate for each convolution, which it sets itself after each epoch. Default: sgdw for signed_supermask and
    supermask, sgd for all others."""
    learning_rate: Annotated[float | None, POSITIVE] = None
    """Highest learning rate, or for adas, that of the first epoch. Default: 0.1 for sgd, or 0.02 for fcn, lenet5 and
    conv2 to conv8, which have no normalization layers; for sgdw 0.05, 0.04 for conv2 and 0.3 for elu_resnet; 0.001 for
    adam, adamw and rmsprop; 0.0001 for lion; 0.03 for adas."""
    schedule: Schedule | None = None
    """Schedule of the learning rate after the warm-up: milestones (x0.1 at each), cosine (to 0), constant, exponential
    (x0.9 after each tenth of the epochs, also for the weight decay of sgdw), plateau (x0.2, at most 5 times, when the
    training loss has not fallen for 15/110 of the epochs), or cosine_restarts (back to the highest value after each
    pruning, and then to 0 along a cosine until the next one). Default: exponential for signed_supermask and supermask,
    or plateau with elu_resnet; milestones for all others, or cosine with --recipe best. adas has none, as it sets the
    learning rates itself."""
    milestones: tuple[int, ...] | None = None
    """Epochs after which the learning rate drops to a tenth. Default: 150/350 and 250/350 of the epochs."""
    warmup_epochs: Annotated[int, NOT_NEGATIVE] = 0
    """Epochs over which the learning rate rises linearly from 0."""
    momentum: Annotated[float, FRACTION] = 0.9
    """Momentum of sgd, sgdw and adas, in [0, 1)."""
    nesterov: bool | None = None
    """Nesterov momentum for sgd, sgdw and adas. Default: only for sgdw."""
    beta1: Annotated[float, FRACTION] = 0.9
    """Decay of the mean of gradients, for adam, adamw and lion, in [0, 1)."""
    beta2: Annotated[float | None, FRACTION] = None
    """Decay of the mean of squares for adam, adamw and rmsprop, and of lion's momentum, in [0, 1). Default: 0.999 for
    adam and adamw, 0.9 for rmsprop, 0.99 for lion."""
    adas_beta: Annotated[float, FRACTION] = 0.8
    """Fraction of its learning rates that adas keeps from one epoch to the next, in [0, 1)."""
    epsilon: Annotated[float, NOT_NEGATIVE] = 1e-8
    """Constant that adam, adamw and rmsprop add to the root mean square of the gradients."""
    weight_decay: Annotated[float | None, NOT_NEGATIVE] = None
    """Weight decay, as a factor of the weight. sgd, adas, adam and rmsprop add it to the gradient; adamw and lion
    subtract it, times the learning rate, from the weight; sgdw subtracts it without the learning rate. Default: 0.0005,
    or 0.0003 for sgdw with elu_resnet."""
    decay_params: Parameters = "all"
    """Parameters with weight decay: all, as in the paper, or kernels, which excludes biases and normalization
    layers."""
    clip_norm: Annotated[float | None, POSITIVE] = None
    """Maximum norm of the gradient over all parameters, including noise. Default: no limit."""
    label_smoothing: Annotated[float, FRACTION] = 0.0
    """Fraction of each label that is spread over all classes during training, in [0, 1)."""
    adversarial: Adversarial = "none"
    """Adversarial training, on images that an attack has changed to raise the loss, and a test on test images that it
    has changed, whose accuracy is the robust accuracy: fgsm, one step along the signs of the gradient (arXiv
    1412.6572); pgd, several such steps from a random start (arXiv 1706.06083); or none. The loss and the accuracy in
    training are then those under attack. Methods that score weights on images still do so on images as they are."""
    attack_epsilon: Annotated[float | None, _RADIUS] = None
    """Largest change of a pixel by the attack, where black is 0 and white is 1. Default: 0.3 for gray images and 8/255
    for color images, as in the papers; 0.1 for digits, whose images are small."""
    attack_step_size: Annotated[float | None, POSITIVE] = None
    """Change of a pixel in each step of pgd. Default: 4/3 of the epsilon over the number of steps for gray images,
    which is the paper's 0.01; 7/4 of it for color images, which is the paper's 2/255; 5/2 of it for digits."""
    attack_steps: Annotated[int | None, AT_LEAST_1] = None
    """Number of steps of pgd. Default: 40 for gray images and 7 for color images, as in the paper; 10 for digits."""
    seed: Annotated[int, _SEED] = 0
    """Seed of initial weights, batches and noise."""
    seeds: Annotated[int, _SEEDS] = 1
    """Number of runs, with the seeds seed, seed + 1, and so on. Each run has its own folder, and the summary has means
    and standard deviations."""
    steps_per_epoch: Annotated[int | None, AT_LEAST_1] = None
    """Maximum number of steps in each epoch, for quick trials. Default: all images, except for an incomplete last
    batch."""
    test_images: Annotated[int | None, AT_LEAST_1] = None
    """Number of test images to use, the first of a fixed shuffle. Default: all."""
    train_split: str = "train"
    """Training split of a data set of TensorFlow Datasets, such as train[:90%]."""
    test_split: str | None = None
    """Test split of a data set of TensorFlow Datasets. Default: test, or validation if there is no test split."""
    stream: bool | None = None
    """True keeps images on disk and decodes them during training; False decodes all of them before training. Default:
    True if the decoded images would take more than half of the memory."""


DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainingOptions)}


def is_elu_resnet(options: TrainingOptions) -> bool:
    """Returns True for the residual networks of Signed Supermask, which have a recipe of their own."""
    return options.model is not None and options.model.startswith("elu_resnet")
