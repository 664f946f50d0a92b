"""Makes docs/results.md of the results of experiments: `python -m experiments.pages [FOLDERS]`.

Each section is of a folder in docs/results: its `results.csv`, beside which the published figures of the preset of that
name are set, and its `remarks.md`, which is taken as it is, as is the `summary.md` of all.
"""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from . import files
from .benchmarks import exercise
from .errors import UserError
from .folder import plots
from .grid import options as grid_options
from .grid import table as grid_table
from .papers import PRESETS, published_table
from .papers.preset import Preset, data_by_name
from .papers.published_table import Cells

PAGE, SUMMARY, REMARKS, EXERCISED = "results.md", "summary.md", "remarks.md", "exercised.csv"
_INTRODUCTION = """# Results

Made by `python -m experiments.pages`. The section of an experiment is made of the `results.csv` that its runs have
left, and none of the numbers in its table was typed; other sections, and remarks, are the text files beside it in
`docs/results`. Accuracies are test accuracies of the last epoch in percent, as means and sample standard deviations
over seeds. What is in *italics* was published; under it is what was measured less that.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Makes docs/results.md of what docs/results holds."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of experiments.reproduce, whose results.csv is copied into docs/results first, under the name of the
    folder."""
    docs: Path = Path("docs")
    """Where the page is."""


def main() -> None:
    """Reads the options, makes the page, and turns what a user can put right into one line."""
    options = tyro.cli(Options, prog="python -m experiments.pages")
    try:
        for folder in options.folders:
            adopt(folder, options.docs)
        made = page(options.docs, draw=True)
        files.write(options.docs / PAGE, lambda file: file.write_text(made, "utf-8"))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"see {options.docs / PAGE}")


def adopt(folder: Path, docs: Path) -> None:
    """Copies the results of a grid to where the page is made of them."""
    if not (folder / grid_table.CSV).is_file():
        raise UserError(f"{folder} must be a folder of a grid, and there is no {grid_table.CSV} in it.")
    place = docs / "results" / folder.resolve().name
    with files.writing(place):
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / grid_table.CSV, place / grid_table.CSV)


def page(docs: Path, *, draw: bool) -> str:
    """The page.

    Args:
      docs: the folder that it is for, with a folder `results`.
      draw: whether the pictures are drawn as well.
    """
    folder = docs / "results"
    found = sorted(one.name for one in folder.iterdir() if one.is_dir())
    for name in found:
        if name not in PRESETS and (folder / name / grid_table.CSV).exists():
            raise UserError(
                f"{folder / name} must have the name of an experiment, as experiments.reproduce --list has it."
            )
    own = [_text(folder / name / REMARKS) for name in found if name not in PRESETS]
    here = [name for name in PRESETS if (folder / name / grid_table.CSV).exists()]
    sections = [_section(name, folder / name, draw) for name in here]
    tried = exercise.read(folder / EXERCISED) if (folder / EXERCISED).exists() else {}
    missing = [
        _not_run(name, PRESETS[name], tried.get(name))
        for name in PRESETS
        if name not in here or (PRESETS[name].published and _changes(name, folder))
    ]
    parts = [_INTRODUCTION, _text(folder / SUMMARY), _overview(folder, here), *sections, *own]
    if missing:
        parts += [
            "## Not run here in full\n\nThe published figures of experiments that take more than was at hand.\n",
            *missing,
        ]
    return "\n".join(part for part in parts if part)


def command(name: str, cells: Cells) -> str:
    """The command that makes such results, with what differs from the preset."""
    preset, line = PRESETS[name], next(iter(cells.values())).lines[0]
    words = ["python -m experiments.reproduce", name]
    if (scale := _scale(preset, line)) != 1:
        words.append(f"--scale {scale:.6g}")
    for option in ("data", "recipe", "width", "image_size", "steps_per_epoch", "test_images", "dtype"):
        usual, value = getattr(preset.config, option), line[option]
        if value != ("" if usual is None else str(usual)):
            words.append(f"--{option.replace('_', '-')} {data_by_name(value)}")
    numbers = sorted({int(number) for cell in cells.values() for number in cell.numbers("seed")})
    if len(numbers) != preset.config.seeds:
        words.append(f"--seeds {len(numbers)}")
    methods = published_table.methods(cells)
    if grid_options.read_rows(methods) != grid_options.read_rows(preset.rows):
        words.append(f"--methods {' '.join(methods)}")
    asked = published_table.sparsities(cells)
    if asked != list(preset.sparsities):
        words.append(f"--sparsities {','.join(map(str, asked))}")
    return " ".join(words)


def _scale(preset: Preset, line: dict[str, str]) -> float:
    # Methods with phases of their own have other epochs, and the first line is dense.
    return int(line["epochs"]) / preset.config.epochs


def _section(name: str, folder: Path, draw: bool) -> str:
    preset, cells = PRESETS[name], published_table.read(folder / grid_table.CSV)
    drawn = len(preset.sparsities) > 1
    if draw and drawn:
        plots.save(published_table.picture(preset, cells), folder / grid_table.PICTURE)
    source = [f"Published: {preset.source}."] if preset.source else []
    differs = [" ".join(["Not as published:"] * bool(preset.source) + list(preset.differs))] if preset.differs else []
    parts = [
        f"## {preset.title}",
        f"```bash\n{command(name, cells)}\n```",
        _facts(preset, cells),
        *source,
        *differs,
        published_table.table(preset, cells),
    ]
    if drawn:
        parts.append(f"![{preset.title}: test accuracy by sparsity](results/{name}/{grid_table.PICTURE})")
    return "\n\n".join([*parts, _text(folder / REMARKS)]).rstrip() + "\n"


def _text(file: Path) -> str:
    return file.read_text("utf-8") if file.exists() else ""


def _facts(preset: Preset, cells: Cells) -> str:
    """What the runs were made on."""
    lines = [line for cell in cells.values() for line in cell.lines]
    first = lines[0]
    said = []
    if (scale := _scale(preset, first)) != 1:
        said.append(f"**{scale:.3g} of the epochs**")
    if first["width"] != str(preset.config.width):
        said.append(f"**{float(first['width']):g} of the channels**")
    if first["image_size"] != str(preset.config.image_size or ""):
        said.append(f"**images of {first['image_size']}x{first['image_size']}**")
    if first["steps_per_epoch"]:
        said.append(f"**{first['steps_per_epoch']} steps an epoch**")
    data = f"{preset.config.data} from {first['files']} files" if first["files"] else first["data"]
    if first["files"] == "JPEG":
        data += ", a lossy copy"
    said += [data, f"{int(first['prunable']):,} prunable weights"]
    hours = sum(float(line["seconds"]) for line in lines) / 3600
    on = " and ".join(sorted({line["device"] for line in lines}))
    versions = " and ".join(sorted({f"flipout_jax {line['flipout_jax']}, JAX {line['jax']}" for line in lines}))
    return f"{', '.join(said)}. {len(lines)} runs, {hours:.2g} hours on {on}; {versions}."


def _overview(folder: Path, here: Sequence[str]) -> str:
    lines = [["experiment", "", "here"], ["---", "---", "---"]]
    for name, preset in PRESETS.items():
        ran = "-"
        if name in here:
            changed = _changes(name, folder)
            ran = "in full" if not changed else ", ".join(f"`--{word}`" for word in changed)
        lines.append([f"`{name}`", preset.title, ran])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _changes(name: str, folder: Path) -> list[str]:
    """The options by which what ran here differs from the experiment, but for where the data are from."""
    words = command(name, published_table.read(folder / name / grid_table.CSV)).split(" --")
    return [word for word in words[1:] if not word.startswith(("data", "dtype"))]


def _not_run(name: str, preset: Preset, tried: Sequence[str] | None) -> str:
    differs = [" ".join(preset.differs)] if preset.differs else []
    head = f"### {preset.title}\n\n`python -m experiments.reproduce {name}`"
    if preset.source:
        head += f". Published: {preset.source}"
    if tried is not None:
        _, runs, finished, data, scale, width, steps = tried
        head += (
            f". Tried in little, by `--data {data} --scale {scale} --width {width} --steps-per-epoch {steps}` at the "
            f"highest sparsity: {finished} of {runs} runs went through"
        )
    head += "."
    if not preset.published:
        return "\n\n".join([head, *differs]) + "\n"
    return "\n\n".join([head, *differs, published_table.table(preset, {})]) + "\n"


if __name__ == "__main__":
    main()
