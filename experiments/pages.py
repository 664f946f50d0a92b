"""Writes docs/results.md from the results of experiments: `python -m experiments.pages [FOLDERS]`.

Each section shows a folder in docs/results: its `results.csv`, together with the published figures of the preset of
that name, and its `remarks.md`. The page begins with `summary.md`. Both texts are copied unchanged.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from . import files
from .errors import UserError, one_line_errors
from .folder import plots, tables
from .grid import results_table
from .grid.options import read_rows
from .papers import PRESETS, exercised, published_table
from .papers.preset import Preset, data_by_name
from .papers.published_table import Cells

PAGE, SUMMARY, REMARKS, EXERCISED = "results.md", "summary.md", "remarks.md", "exercised.csv"
_INTRODUCTION = """# Results

Written by `python -m experiments.pages`. The section of an experiment is computed from the `results.csv` that its runs
wrote; no number in its table was typed by hand. Remarks and all other sections are text files in `docs/results`.
Accuracies are test accuracies after the last epoch in percent, as means and sample standard deviations over seeds.
Numbers in *italics* were published; below each is the difference, measured minus published.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes docs/results.md from the files in docs/results."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders written by experiments.reproduce. Their results.csv are first copied into folders of the same names in
    docs/results."""
    docs: Path = Path("docs")
    """Folder of the page."""


@one_line_errors()
def main() -> None:
    """Writes the page and its pictures."""
    options = tyro.cli(Options, prog="python -m experiments.pages")
    for folder in options.folders:
        adopt(folder, options.docs)
    text = page(options.docs, draw=True)
    files.write(options.docs / PAGE, lambda file: file.write_text(text, "utf-8"))
    print(f"see {options.docs / PAGE}")


def adopt(folder: Path, docs: Path) -> None:
    """Copies the results of a grid into the folder of the page."""
    if not (folder / results_table.CSV).is_file():
        raise UserError(f"{folder} must be a folder of a grid, and there is no {results_table.CSV} in it.")
    place = docs / "results" / folder.resolve().name
    with files.writing(place):
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / results_table.CSV, place / results_table.CSV)


def page(docs: Path, *, draw: bool) -> str:
    """Returns the text of the page.

    Args:
      docs: the folder of the page, which has a folder `results`.
      draw: draws the pictures, too.
    """
    folder = docs / "results"
    found = sorted(one.name for one in folder.iterdir() if one.is_dir())
    for name in found:
        if name not in PRESETS and (folder / name / results_table.CSV).exists():
            raise UserError(
                f"{folder / name} must have the name of an experiment, as experiments.reproduce --list shows it."
            )
    other_sections = [_text(folder / name / REMARKS) for name in found if name not in PRESETS]
    here = [name for name in PRESETS if (folder / name / results_table.CSV).exists()]
    sections = [_section(name, folder / name, draw) for name in here]
    tried = exercised.read(folder / EXERCISED) if (folder / EXERCISED).exists() else {}
    missing = [
        _not_run(name, PRESETS[name], tried.get(name))
        for name in PRESETS
        if name not in here or (PRESETS[name].published and _changes(name, folder))
    ]
    parts = [_INTRODUCTION, _text(folder / SUMMARY), _overview(folder, here), *sections, *other_sections]
    if missing:
        parts += [
            "## Not run here in full\n\nThe published figures of experiments that need more time than there was.\n",
            *missing,
        ]
    return "\n".join(part for part in parts if part)


def command(name: str, cells: Cells) -> str:
    """Returns the command that reproduces some results, with the options that differ from the preset."""
    preset = PRESETS[name]
    line = next(iter(cells.values())).lines[0]
    words = ["python -m experiments.reproduce", name]
    scale = _scale(preset, line)
    if scale != 1:
        words.append(f"--scale {scale:.6g}")
    for option in ("data", "recipe", "width", "image_size", "steps_per_epoch", "test_images", "dtype"):
        usual = getattr(preset.config, option)
        value = line[option]
        if value != ("" if usual is None else str(usual)):
            words.append(f"--{option.replace('_', '-')} {data_by_name(value)}")
    seeds = {int(number) for cell in cells.values() for number in cell.numbers("seed")}
    if len(seeds) != preset.config.seeds:
        words.append(f"--seeds {len(seeds)}")
    methods = published_table.methods(cells)
    if read_rows(methods) != read_rows(preset.rows):
        words.append(f"--methods {' '.join(methods)}")
    sparsities = published_table.sparsities(cells)
    if sparsities != list(preset.sparsities):
        words.append(f"--sparsities {','.join(map(str, sparsities))}")
    return " ".join(words)


def _scale(preset: Preset, line: dict[str, str]) -> float:
    # The first line is dense; methods that train in several phases have other numbers of epochs.
    return int(line["epochs"]) / preset.config.epochs


def _section(name: str, folder: Path, draw: bool) -> str:
    """Writes the section of an experiment that was run."""
    preset = PRESETS[name]
    cells = published_table.read(folder / results_table.CSV)
    parts = [f"## {preset.title}", f"```bash\n{command(name, cells)}\n```", _facts(preset, cells)]
    if preset.source:
        parts.append(f"Published: {preset.source}.")
    if preset.differs:
        label = ["Differences from the publication:"] if preset.source else []
        parts.append(" ".join([*label, *preset.differs]))
    parts.append(published_table.table(preset, cells))
    if preset.with_losses:
        parts.append(published_table.losses(preset, cells))
    if len(preset.sparsities) > 1:
        if draw:
            plots.save(published_table.picture(preset, cells), folder / results_table.PICTURE)
        parts.append(f"![{preset.title}: test accuracy by sparsity](results/{name}/{results_table.PICTURE})")
    return "\n\n".join([*parts, _text(folder / REMARKS)]).rstrip() + "\n"


def _text(file: Path) -> str:
    return file.read_text("utf-8") if file.exists() else ""


def _facts(preset: Preset, cells: Cells) -> str:
    """Returns a line with the facts about the runs, such as the data and the devices."""
    lines = [line for cell in cells.values() for line in cell.lines]
    first = lines[0]
    facts = []
    scale = _scale(preset, first)
    if scale != 1:
        facts.append(f"**{scale:.3g} of the epochs**")
    if first["width"] != str(preset.config.width):
        facts.append(f"**{float(first['width']):g} of the channels**")
    if first["image_size"] != str(preset.config.image_size or ""):
        facts.append(f"**images of {first['image_size']}x{first['image_size']}**")
    if first["steps_per_epoch"]:
        facts.append(f"**{first['steps_per_epoch']} steps per epoch**")
    data = f"{preset.config.data} from {first['files']} files" if first["files"] else first["data"]
    if first["files"] == "JPEG":
        data += ", a lossy copy"
    facts += [data, f"{int(first['prunable']):,} prunable weights"]
    hours = sum(float(line["seconds"]) for line in lines) / 3600
    devices = " and ".join(sorted({line["device"] for line in lines}))
    versions = " and ".join(sorted({f"flipout_jax {line['flipout_jax']}, JAX {line['jax']}" for line in lines}))
    return f"{', '.join(facts)}. {len(lines)} runs, {hours:.2g} hours on {devices}; {versions}."


def _overview(folder: Path, here: Sequence[str]) -> str:
    """Writes the table of all experiments, with how much of each was run."""
    lines = []
    for name, preset in PRESETS.items():
        scope = "-"
        if name in here:
            scope = ", ".join(f"`--{word}`" for word in _changes(name, folder)) or "in full"
        lines.append([f"`{name}`", preset.title, scope])
    return tables.as_markdown(["experiment", "", "here"], lines, text_columns=3) + "\n"


def _changes(name: str, folder: Path) -> list[str]:
    """Returns the options in which the runs differ from the experiment, other than those of data and type."""
    words = command(name, published_table.read(folder / name / results_table.CSV)).split(" --")
    return [word for word in words[1:] if not word.startswith(("data", "dtype"))]


def _not_run(name: str, preset: Preset, tried: Sequence[str] | None) -> str:
    """Writes the section of an experiment that was not run in full.

    Args:
      name: the name of the experiment.
      preset: the experiment.
      tried: the line on how it was tried on a small scale; None if it was not.
    """
    usage = f"`python -m experiments.reproduce {name}`"
    if preset.source:
        usage += f". Published: {preset.source}"
    if tried is not None:
        _, runs, finished, data, scale, width, steps = tried
        usage += (
            f". Tried on a small scale, with `--data {data} --scale {scale} --width {width} --steps-per-epoch {steps}` "
            f"at the highest sparsity: {finished} of {runs} runs finished"
        )
    parts = [f"### {preset.title}", usage + "."]
    if preset.differs:
        parts.append(" ".join(preset.differs))
    if preset.published:
        parts.append(published_table.table(preset, {}))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
