"""The page of results: measured beside published, and the command that makes it again."""

import dataclasses
import re
import shlex
import statistics
from pathlib import Path

import pytest
import tyro

from experiments import pages, reproduce
from experiments.errors import UserError
from experiments.grid import results_table
from experiments.options.config import digest
from experiments.papers import PRESETS, published_table
from experiments.reproduce import Options

DOCS = Path(__file__).parents[2] / "docs"


def planned(options):
    one = PRESETS[options.name]
    return reproduce.plan(options, one, reproduce.config(options, one))


@pytest.fixture
def written(tmp_path, as_if_run):
    """`written(words)`: the documents with the results of a command that nobody ran, and its cells."""

    def written(words):
        options = tyro.cli(Options, args=[*shlex.split(words), "--output-dir", str(tmp_path / "runs" / "a")])
        cells = planned(options)
        results = as_if_run(cells, lambda cell, seed: 0.5 + 0.125 * seed)
        for cell in cells:
            runs = results[cell.folder]
            for i, run in enumerate(runs):
                seed = cell.config.seed + run.result.seed
                own = dataclasses.replace(run.result, epochs=cell.config.epochs, seed=seed)
                runs[i] = run._replace(result=own)
        folder = tmp_path / "docs" / "results" / options.name
        folder.mkdir(parents=True)
        (folder / results_table.CSV).write_text(results_table.as_csv(cells, results))
        (folder / pages.REMARKS).write_text("What this says.\n")
        return tmp_path / "docs", cells

    return written


@pytest.mark.parametrize(
    "words",
    [
        "flipout-resnet18-cifar10",
        "flipout-vgg19-cifar10-ablations --scale 0.1 --seeds 2 --data folder:cifar10",
        "grasp-resnet32-cifar100 --scale 0.25 --width 0.5 --image-size 16 --steps-per-epoch 3 --test-images 9",
        "supermask-conv2-cifar10 --scale 0.03 --dtype bfloat16",
        "flipout-resnet18-cifar10 --recipe best --methods flipout flipout:recipe=paper",
        "flipout-resnet18-cifar10 --methods flipout flipout:power=1:sparsity_schedule=cubic --sparsities 0.5,0.999",
    ],
)
def test_the_page_names_the_command_that_makes_the_results(words, written):
    docs, cells = written(words)
    name = words.split()[0]
    command = published_table.read(docs / "results" / name / results_table.CSV)
    said = pages.command(name, command).removeprefix("python -m experiments.reproduce ")
    again = planned(tyro.cli(Options, args=shlex.split(said)))
    assert [digest(cell.config) for cell in again] == [digest(cell.config) for cell in cells]
    assert [cell.config.seeds for cell in again] == [cell.config.seeds for cell in cells]
    assert f"```bash\npython -m experiments.reproduce {said}\n```" in pages.page(docs, draw=False)


def test_a_section_has_measured_published_and_their_difference(written):
    docs, _ = written("flipout-resnet18-cifar10 --scale 0.1 --width 0.25")
    made = pages.page(docs, draw=True)
    (section,) = re.findall(r"## FlipOut: ResNet-18 on CIFAR-10\n.*?What this says\.\n", made, re.DOTALL)
    # Means and deviations of 0.5, 0.625, 0.75.
    std = f"{100 * statistics.stdev([0.5, 0.625, 0.75]):.2f}"
    assert f"| flipout | 62.50 ± {std}<br>*94.64 ± 0.21*<br>\N{MINUS SIGN}32.14 |" in section
    assert f"| random | 62.50 ± {std}<br>*94.31 ± 0.18*<br>\N{MINUS SIGN}31.81 |" in section
    assert "<br>+48.85 |" in section
    assert f"| dense | 62.50 ± {std}<br>*95.37 ± 0.12*<br>" in section
    assert "**0.1 of the epochs**, **0.25 of the channels**" in section
    picture = docs / "results" / "flipout-resnet18-cifar10" / results_table.PICTURE
    assert picture.stat().st_size > 10_000
    assert f"(results/flipout-resnet18-cifar10/{picture.name})" in section
    # What was not run, or not in full, is there too, with what was published.
    _, others = made.split("## Not run here in full")
    assert "### FlipOut: VGG-19 on CIFAR-10" in others
    assert "| flipout | *92.77 ± 0.08* |" in others
    assert "### FlipOut: ResNet-18 on CIFAR-10\n" in others
    assert (
        made.count("| `flipout-resnet18-cifar10` | FlipOut: ResNet-18 on CIFAR-10 | `--scale 0.1`, `--width 0.25` |")
        == 1
    )


def test_a_sparsity_that_is_the_methods_own_stands_beside_the_accuracy(written):
    docs, _ = written("supermask-fcn-mnist")
    made = pages.page(docs, draw=False)
    assert made.count("Signed Supermask: FCN on MNIST\n") == 1
    assert re.search(
        r"\| signed_supermask \| 62\.50 ± \S+ at 87\.5 %<br>\*97\.48 at 96\.23 %\*<br>\N{MINUS SIGN}34\.98 \|", made
    )


def test_a_sparsity_that_is_not_the_target_stands_beside_the_accuracy(written):
    docs, _ = written("digits --sparsities 0.875,0.9")
    file = docs / "results" / "digits" / results_table.CSV
    text = file.read_text()
    assert text.count("magnitude,,0.9,0.9,100,1000") == 3
    file.write_text(text.replace("magnitude,,0.9,0.9,100,1000", "magnitude,,0.9,0.85,150,1000"))
    made = pages.page(docs, draw=False)
    assert re.search(r"\| magnitude \| 62\.50 ± 12\.50 \| 62\.50 ± 12\.50 at 85 % \|", made)


def test_losses_have_a_table_of_their_own(written):
    docs, _ = written("growth-digits --methods magnitude n_m")
    file = docs / "results" / "growth-digits" / results_table.CSV
    lines = file.read_text().splitlines()
    at = lines[0].split(",").index("test_loss")
    for i, line in enumerate(lines[1:], 1):
        words = line.split(",")
        # Three runs of one cell have losses of 0.25, 0.5 and 0.75, whose standard deviation is 0.25.
        words[at] = str(0.25 + 0.25 * ((i - 1) % 3))
        lines[i] = ",".join(words)
    file.write_text("\n".join(lines) + "\n")
    made = pages.page(docs, draw=False)
    assert "| test loss | 93.75 % | 98.44 % | its own sparsity |" in made
    loss = "0.5000 ± 0.2500"
    assert f"| dense | {loss} | {loss} | {loss} |\n| magnitude | {loss} | {loss} |  |\n| n_m |  |  | {loss} |" in made


def test_results_are_adopted_under_the_name_of_their_folder(written, tmp_path):
    docs, _ = written("digits")
    run = tmp_path / "mnist-lenet"
    (docs / "results" / "digits").rename(run)
    pages.adopt(run, docs)
    adopted = docs / "results" / "mnist-lenet" / results_table.CSV
    assert adopted.read_bytes() == (run / results_table.CSV).read_bytes()
    with pytest.raises(UserError, match="must be a folder of a grid"):
        pages.adopt(tmp_path, docs)


def test_results_that_are_of_no_experiment_are_told(written, tmp_path):
    docs, _ = written("digits")
    (docs / "results" / "digits").rename(docs / "results" / "other")
    with pytest.raises(UserError, match=r"other must have the name of an experiment"):
        pages.page(docs, draw=False)
    (docs / "results" / "other" / results_table.CSV).write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"results\.csv .*other columns"):
        published_table.read(docs / "results" / "other" / results_table.CSV)


def test_the_page_in_the_documents_is_the_one_of_their_results():
    assert (DOCS / pages.PAGE).read_text("utf-8") == pages.page(DOCS, draw=False)
    for name in PRESETS:
        if (DOCS / "results" / name / results_table.CSV).exists() and len(PRESETS[name].sparsities) > 1:
            assert (DOCS / "results" / name / results_table.PICTURE).exists()
