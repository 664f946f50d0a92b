"""The table and the pictures of a run, made from the files in its folder alone."""

from pathlib import Path
from typing import Any

import flipout_jax as fj

from .. import files
from ..options.config import Config
from . import flip_counts, plots, run_directory


def title(config: Config) -> str:
    """Returns a one-line description of a run."""
    sparsity = f" {config.sparsity:g}" if config.method.has_target else ""
    return f"{_model(config)} on {config.data}, {config.method.name()}{sparsity}"


def slug(config: Config) -> str:
    """Returns a description of a run that can be the name of a folder."""
    source = Path(config.data).name.split(":")[-1]
    seeds = f"seed{config.seed}" if config.seeds == 1 else f"seeds{config.seed}-{config.seed + config.seeds - 1}"
    sparsity = f"-{config.sparsity:g}" if config.method.has_target else ""
    return f"{source}-{_model(config)}-{config.method.slug()}{sparsity}-{seeds}"


def _model(config: Config) -> str:
    return f"{config.model}" if config.width == 1 else f"{config.model}-x{config.width:g}"


def save_tables(folder: Path, epoch: int, params: Any, opt_state: Any) -> fj.Summary:
    """Writes the summary of each layer and the flips of the kept weights after an epoch; returns the summary."""
    summary = fj.summary(params, opt_state)
    flips = flip_counts.count(epoch, fj.get_masks(opt_state), opt_state)
    table = {
        "rows": [row._asdict() for row in summary.rows],
        "total": summary.total._asdict(),
        "parameters": summary.parameters,
        "flips": flip_counts.as_json(flips),
    }
    files.write_json(folder / run_directory.TABLES, table)
    return summary


def read_tables(folder: Path) -> tuple[fj.Summary, flip_counts.Pruning]:
    """Returns the summary and the flips that `save_tables` wrote."""
    file = folder / run_directory.TABLES
    what = "a table of layers"
    stored = files.read_json(file, what, {"rows": list, "total": dict, "parameters": int, "flips": dict})
    with files.reading(file, what):
        rows = [fj.Row(**row | {"shape": tuple(row["shape"])}) for row in (*stored["rows"], stored["total"])]
        for row in rows:
            files.check_type("a row", row._replace(flips=row.flips and tuple(row.flips)), fj.Row)
        return fj.Summary(tuple(rows[:-1]), rows[-1], stored["parameters"]), flip_counts.from_json(stored["flips"])


def draw(folder: Path) -> list[Path]:
    """Draws the pictures of a run and returns their files."""
    heading = title(run_directory.read_config(folder))
    metrics = run_directory.read_metrics(folder)
    prunings = run_directory.read_flip_counts(folder)
    summary, last = read_tables(folder)
    pictures = [folder / name for name in run_directory.PICTURES]
    curves, layers, flips = pictures
    plots.curves(curves, metrics, heading)
    plots.layers(layers, summary, heading)
    plots.flips(flips, prunings or [last], heading)
    return pictures
