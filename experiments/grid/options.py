"""The options of a grid: its methods, its sparsities, and the options that all of its runs share."""

import ast
import dataclasses
import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from tyro.conf import Fixed, Suppress

from .. import files, methods
from ..errors import UserError
from ..methods import Method
from ..methods.flipout import Flipout
from ..options.config import INCIDENTAL, Config
from .cells import DENSE, Row, label

# Options that no row can have, since all cells share them or the grid sets them itself.
_NOT_OF_ROWS = {
    *INCIDENTAL,
    *("data", "train_split", "test_split", "test_images", "image_size", "stream"),
    *("model", "width", "method", "sparsity", "epochs", "steps_per_epoch", "seed", "seeds"),
}


@dataclasses.dataclass(frozen=True)
class Grid:
    """Trains with each method at each sparsity, and once without pruning; finished runs are not repeated.

    Writes results.csv, results.md and accuracy.png, and each run into a folder below.
    """

    methods: tuple[str, ...] | None = None
    """Methods of experiments.train, as a,b or a b. A method with options, such as flipout:noise_scale=0.5, is a row of
    its own."""
    sparsities: tuple[str, ...] | None = None
    """Target sparsities: fractions of the prunable weights that are zero at the end, as 0.75,0.9375. A method whose own
    options determine the sparsity, such as hoyer_threshold, runs once."""
    jobs: int | None = None
    """Number of processes, each of which trains one cell at a time. Those on one GPU share its memory. Default: 1, or
    one for each of --gpus."""
    gpus: tuple[int, ...] = ()
    """Numbers of the GPUs, of which each process gets one. Default: each process sees all of them."""


@dataclasses.dataclass(frozen=True)
class Training(Config):
    """Options that all cells share, with the names and defaults of experiments.train."""

    output_dir: Path | None = Path("runs/grid")
    """Folder of the grid. The same command continues a grid that was stopped."""
    overwrite: bool = False
    """Train the cells again that the folder holds with other options; those with the same options are kept."""
    method: Suppress[Fixed[Method]] = Flipout()
    sparsity: Suppress[Fixed[float]] = 0.9375
    resume: Suppress[Fixed[Path | None]] = None
    coordinator: Suppress[Fixed[str | None]] = None
    num_processes: Suppress[Fixed[int | None]] = None
    process_id: Suppress[Fixed[int | None]] = None


def base_of(training: Training) -> Config:
    """Returns the options that all cells share as those of a run."""
    return Config(**{field.name: getattr(training, field.name) for field in dataclasses.fields(Config)})


def read_rows(words: Sequence[str]) -> list[Row]:
    """Parses the rows that `--methods` names, such as `flipout,magnitude flipout:noise_scale=0.5:power=1`.

    Raises:
      UserError: for a method or an option that does not exist, or a row that is named twice.
    """
    expected = f"names of methods: {', '.join(methods.by_name())}"
    rows = [_read_row(word) for word in _split("methods", words, expected)]
    _require_once("methods", list(map(label, rows)))
    return rows


def read_sparsities(words: Sequence[str]) -> list[float]:
    """Parses the numbers that `--sparsities` names, and sorts them.

    Raises:
      UserError: for a word that is no number in (0, 1), or a number that is named twice.
    """
    wanted = "numbers in (0, 1), such as 0.75,0.9375"
    sparsities = []
    for word in _split("sparsities", words, wanted):
        try:
            sparsities.append(float(word))
        except ValueError:
            raise UserError(f"--sparsities must be {wanted}, got {word!r}.") from None
        if not 0 < sparsities[-1] < 1:
            raise UserError(f"--sparsities must be {wanted}, got {word}.")
    _require_once("sparsities", sparsities)
    return sorted(sparsities)


def _split(option: str, words: Sequence[str], wanted: str) -> list[str]:
    parts = [part.strip() for word in words for part in word.split(",")]
    if not any(parts) or not all(parts):
        raise UserError(f"--{option} must be {wanted}; got {','.join(words)!r}.")
    return parts


def _require_once(option: str, values: Sequence[Any]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"--{option} must name each of them once, got {value} {values.count(value)} times.")


def _read_row(word: str) -> Row:
    method, *settings = word.split(":")
    if settings and "=" not in settings[0] and method not in methods.by_name():
        # A user's own method is named as package.module:NAME.
        method = f"{method}:{settings.pop(0)}"
        methods.find(method)
    elif method not in methods.by_name():
        raise UserError(_unknown("methods", "be among", [*methods.by_name()], method))
    if method == DENSE and settings:
        raise UserError(f"--methods must name dense without options, got {word!r}.")
    method_hints = get_type_hints(methods.find(method))
    hints = {name: method_hints[name] for name in methods.option_names(methods.find(method))}
    hints |= {name: hint for name, hint in get_type_hints(Config).items() if name not in _NOT_OF_ROWS}
    own = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.replace("-", "_")
        if not equals or name in own:
            raise UserError(f"--methods must give each option of {method} once as NAME=VALUE, got {word!r}.")
        if name not in hints:
            raise UserError(_unknown("methods", f"name options of {method}:", list(hints), name))
        own[name] = _read_value(word, name, text, hints[name])
    return Row(method, tuple(sorted(own.items())))


def _read_value(word: str, name: str, text: str, wanted: Any) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if wanted in (float, float | None) and type(value) is int:
        value = float(value)
    try:
        files.check_type(name, value, wanted)
    except TypeError as error:
        # The message has several lines if the option may have one of several types.
        reason = " ".join(str(error).split())
        raise UserError(f"--methods {word} must give {name} a value of its type: {reason}.") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--methods {word} must give {name} a number that is finite, got {text}.")
    return value


def _unknown(option: str, verb: str, known: Sequence[str], name: str) -> str:
    near = difflib.get_close_matches(name, known)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"--{option} must {verb} {', '.join(known)}; got {name!r}{hint}"
