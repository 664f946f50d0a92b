"""Shows a run, finished or not, from the files in its folder: `python -m experiments.inspect RUN_DIR`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import UserError, one_line_errors
from .folder import run_directory, shown, tables
from .options.config import Config
from .run import seeds

_RESULTS = {
    "test_accuracy": ("test accuracy", "{:.2%}"),
    "robust_accuracy": ("robust accuracy", "{:.2%}"),
    "train_accuracy": ("training accuracy", "{:.2%}"),
    "sparsity": ("sparsity", "{:.4%}"),
    "kept": ("weights kept", "{:,}"),
    "prunable": ("prunable weights", "{:,}"),
    "skipped_steps": ("steps skipped because gradients were not finite", "{:,}"),
    "seconds": ("seconds", "{:,.0f}"),
    "seconds_to_first_step": ("seconds to the first step", "{:.1f}"),
    "images_per_second": ("images per second", "{:,.0f}"),
    "flops_per_image": ("operations per forward pass", "{:.3g}"),
    "flop_utilisation": ("fraction of the device's peak", "{:.1%}"),
    "device": ("device", "{}"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Prints the tables of a run and redraws its pictures."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, as written by experiments.train."""


@one_line_errors()
def main() -> None:
    """Inspects the run that the command line names."""
    inspect(tyro.cli(Options, prog="python -m experiments.inspect").run)


def inspect(folder: Path) -> None:
    """Prints the tables of a run, or of each run if the folder holds several seeds, and redraws the pictures."""
    if not (folder / run_directory.CONFIG).is_file():
        raise UserError(f"{folder} must be the folder of a run, and there is no {run_directory.CONFIG} in it.")
    config = dataclasses.replace(run_directory.read_config(folder), output_dir=folder)
    if config.seeds > 1:
        for one in seeds.members(config):
            if run_directory.of(one).is_dir():
                inspect(run_directory.of(one))
        if (folder / run_directory.SUMMARY).is_file():
            Console().print(_over_seeds(folder, config))
        return
    epochs = run_directory.read_metrics(folder)
    finished = (folder / run_directory.SUMMARY).is_file()
    if finished:
        results = dataclasses.asdict(run_directory.read_result(folder))
    else:
        results = dataclasses.asdict(epochs[-1]) if epochs else {}
        results["skipped_steps"] = sum(m.skipped_steps for m in epochs)
    state = "finished" if finished else f"{len(epochs)} of {config.method.epochs(config)} epochs"
    title = f"{shown.title(config)}, seed {config.seed}: {state}"
    table = Table(title=escape(title), show_header=False, min_width=len(title))
    for label, text in _cells(results):
        table.add_row(label, escape(text))
    Console().print(table)
    if (folder / run_directory.TABLES).is_file():
        print(shown.read_tables(folder)[0])
        print(f"redrawn: {', '.join(str(picture) for picture in shown.draw(folder))}")
        if (folder / run_directory.PARAMETERS).is_file():
            print(_parameters(folder))
    else:
        print(f"There are no tables in {folder}/ yet, so nothing is drawn.")


def _parameters(folder: Path) -> str:
    """Checks the file of parameters; returns a line that says what it holds.

    Raises:
      UserError: if it is damaged, or a pruned weight is not 0.
    """
    stored = run_directory.read_parameters(folder)
    masks = {name.removeprefix("masks/"): mask for name, mask in stored.items() if name.startswith("masks/")}
    for name, mask in masks.items():
        if stored[f"params/{name}"][~mask].any():
            raise UserError(f"{folder / run_directory.PARAMETERS} must be 0 where it is masked, and {name} is not.")
    kept = sum(int(mask.sum()) for mask in masks.values())
    return f"{run_directory.PARAMETERS} is intact: {len(stored)} arrays, {kept:,} prunable weights kept, the rest 0"


def _over_seeds(folder: Path, config: Config) -> Table:
    result = dataclasses.asdict(run_directory.read_seeds_result(folder))
    rows = []
    for name, (label, form) in _RESULTS.items():
        if result.get(f"{name}_std") is not None:
            rows.append([label, form.format(result[name]), form.format(result[f"{name}_std"])])
    title = f"{shown.title(config)}, {config.seeds} seeds"
    return tables.for_terminal(["", "mean", "standard deviation"], rows, title)


def _cells(results: dict[str, Any]) -> list[tuple[str, str]]:
    told = {name: value for name, value in results.items() if value is not None}
    if not told.get("skipped_steps"):
        told.pop("skipped_steps", None)
    return [(label, form.format(told[name])) for name, (label, form) in _RESULTS.items() if name in told]


if __name__ == "__main__":
    main()
