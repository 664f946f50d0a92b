"""Results of a run: of each epoch, of the whole run, of several seeds, and in 8 bits.

Each class has the fields of a JSON object in the folder of a run, with the types that reading checks. A number that is
not finite is null there, which is why numbers that can diverge may be None.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one epoch, a line of `metrics.jsonl`.

    Attributes:
      epoch: its number, from 1.
      train_loss: mean over the training images, each measured on its batch before the step; None if not finite.
      train_accuracy: likewise.
      test_loss: mean over the test images; None if the epoch was not tested, or if it is not finite.
      test_accuracy: likewise.
      robust_accuracy: likewise, on test images under attack; None also without adversarial training.
      skipped_steps: steps that were skipped because their gradients were not finite.
      learning_rate: of the last step; with adas, the mean over its convolutions and the dense layers.
      pruned: whether the epoch ended with fewer weights.
      kept: prunable weights that are not pruned.
      sparsity: fraction of the prunable weights that are pruned.
      seconds: duration, the test included.
      images_per_second: training images, over all runs of the program.
    """

    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    skipped_steps: int
    learning_rate: float
    pruned: bool
    kept: int
    sparsity: float
    seconds: float
    images_per_second: float
    robust_accuracy: float | None = None


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Result of a finished run, `summary.json` in its folder.

    Attributes:
      method: the pruning method.
      data: the dataset, as the user named it.
      files: the format of its image files, since accuracies on lossy files are not comparable with others; None for a
        dataset in its authors' own format.
      model: the network.
      classes: number of classes.
      seed: the seed.
      epochs: number of epochs.
      sparsity_target: the sparsity that was asked for, or reached by a method without a target.
      sparsity: fraction of the prunable weights that are pruned.
      kept: number of prunable weights that are not pruned.
      prunable: number of prunable weights.
      test_accuracy: after the last epoch.
      best_test_accuracy: of any epoch; in a run that prunes this is usually that of a denser network.
      test_loss: after the last epoch; None if not finite.
      train_accuracy: of the last epoch, each image measured on its batch before the step; None if not finite.
      skipped_steps: steps that were skipped because their gradients were not finite.
      seconds: sum over the epochs.
      images_per_second: median over the epochs without the first, which warms up.
      flops_per_image: operations of one forward pass.
      model_flops_per_second: operations per second of training.
      peak_flops_per_second: peak rate of the device.
      peak_source: where the peak comes from.
      flop_utilisation: the rate over the peak.
      seconds_to_first_step: from the start of the program; None if no step was left to do.
      runs_at_once: runs that shared the program.
      compile_count: how often the training step was compiled.
      versions: of flipout_jax and of JAX.
      device: the kind of device.
      robust_accuracy: after the last epoch, on test images under attack; None without adversarial training.
      attack: the attack of training and of this test, with its settings; None without adversarial training.
    """

    method: str
    data: str
    files: str | None
    model: str
    classes: int
    seed: int
    epochs: int
    sparsity_target: float
    sparsity: float
    kept: int
    prunable: int
    test_accuracy: float
    best_test_accuracy: float | None
    test_loss: float | None
    train_accuracy: float | None
    skipped_steps: int
    seconds: float
    images_per_second: float | None
    flops_per_image: float | None
    model_flops_per_second: float | None
    peak_flops_per_second: float | None
    peak_source: str
    flop_utilisation: float | None
    seconds_to_first_step: float | None
    runs_at_once: int
    compile_count: int
    versions: dict[str, str]
    device: str
    robust_accuracy: float | None = None
    attack: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class SeedsResult:
    """Means and sample standard deviations over runs that differ in their seeds only, `summary.json` of all of them.

    The fields are those of `RunResult`, with `NAME_std` for the standard deviation of `NAME`. Both are None if a run
    that diverged has no such number.

    Attributes:
      seeds: the seed of each run.
      sparsity_target: mean, which is the common value of methods that have a target.
      kept: mean, rounded.
      skipped_steps: sum.
    """

    seeds: list[int]
    method: str
    data: str
    files: str | None
    model: str
    classes: int
    epochs: int
    prunable: int
    versions: dict[str, str]
    device: str
    sparsity_target: float
    kept: int
    skipped_steps: int
    test_accuracy: float
    test_accuracy_std: float
    best_test_accuracy: float | None
    best_test_accuracy_std: float | None
    test_loss: float | None
    test_loss_std: float | None
    train_accuracy: float | None
    train_accuracy_std: float | None
    images_per_second: float | None
    images_per_second_std: float | None
    seconds: float
    seconds_std: float
    sparsity: float
    sparsity_std: float
    robust_accuracy: float | None = None
    robust_accuracy_std: float | None = None
    attack: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class QuantizedResult:
    """Result of a run whose network was quantized to 8 bits, `quantized.json` in its folder.

    Attributes:
      observer: how the ranges of activations were found.
      scheme: how activations became integers.
      weight_observer: how the ranges of weights were found.
      weight_scheme: how weights became integers.
      weights_only: whether activations were left as they were.
      outputs: whether outputs of layers became integers too; with `per_layer`, the errors of each layer's outputs.
      per_layer: whether the errors of each layer were shown.
      test_accuracy_before: before quantization.
      test_accuracy: after quantization.
      bytes_before: size of the network before quantization.
      bytes: size of the network after quantization.
      sparsity_before: fraction of prunable weights that are 0, before quantization.
      sparsity: likewise, after quantization.
      weights: the errors of each layer's weights.
    """

    observer: str
    scheme: str
    weight_observer: str
    weight_scheme: str
    weights_only: bool
    outputs: bool | list[dict[str, Any]]
    per_layer: bool
    test_accuracy_before: float
    test_accuracy: float
    bytes_before: int
    bytes: int
    sparsity_before: float
    sparsity: float
    weights: list[dict[str, Any]]
