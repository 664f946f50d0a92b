"""What a finished run costs, stage by stage: numbers that agree with the run, and a page that needs nothing else."""

import json
import re
import shutil
import sys

import numpy as np
import pytest

import flipout_jax as fj
from experiments import files, report
from experiments.after import finished, stages
from experiments.benchmarks import smaller
from experiments.errors import UserError
from experiments.run import training

NAMES = ["dense", "pruned", "8 bits", "compacted", "compacted, 8 bits"]


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    """The folder of a run with its report, and the report."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("reported") / "run")
    return folder, report.report(report.Options(folder, repeats=3))


def test_the_stages_agree_with_the_run(reported):
    folder, result = reported
    summary = json.loads((folder / "summary.json").read_text())
    found = {stage["name"]: stage for stage in result["stages"]}
    assert list(found) == NAMES
    dense, pruned, compacted = found["dense"], found["pruned"], found["compacted"]
    assert dense["accuracy"] is None
    assert dense["kept"] == dense["weights"] == summary["prunable"]
    # Of dense layers, each weight multiplies once.
    assert dense["multiply_adds"] == dense["kept_multiply_adds"] == summary["prunable"]
    assert pruned["kept"] == pruned["kept_multiply_adds"] == summary["kept"]
    assert pruned["multiply_adds"] == pruned["weights"] == summary["prunable"]
    assert pruned["accuracy"] == pytest.approx(summary["test_accuracy"], abs=1e-7)
    # Of so few weights, some lead nowhere.
    assert compacted["kept"] < pruned["kept"]
    assert compacted["multiply_adds"] == compacted["weights"] < 0.8 * pruned["weights"]
    assert compacted["accuracy"] == pruned["accuracy"]
    assert result["logits_differ_by"] < 1e-5
    for exact, integers in ((pruned, found["8 bits"]), (compacted, found["compacted, 8 bits"])):
        assert (integers["kept"], integers["multiply_adds"]) == (exact["kept"], exact["multiply_adds"])
        assert integers["memory"] < 0.5 * exact["memory"]
        assert abs(integers["accuracy"] - exact["accuracy"]) < 0.02
    assert dense["memory"] == 4 * (summary["prunable"] + 150 + 50 + 10) == pruned["memory"]
    assert dense["memory"] < dense["disk"] < dense["memory"] + 1000
    assert pruned["disk"] < dense["disk"] / 8
    for stage in found.values():
        for latency in stage["latency"].values():
            assert 0 < latency["low"] <= latency["median"] <= latency["high"] < 10


def test_what_is_compacted_is_small_arrays_of_the_same_function(reported):
    run = finished.read(reported[0])
    told = []
    made = stages.make(run, None, 1, told.append)
    assert told == ["8 bits", "compaction", "latency", "accuracy"]
    rows = {row.path: row for row in made.compacted.rows}
    assert rows["dense_0/kernel"].before == (64, 150)
    assert rows["dense_0/kernel"].after[1] == rows["dense_1/kernel"].after[0] < 150
    before, after = ({layer.path: layer for layer in flops.layers} for flops in made.layers)
    assert before.keys() == after.keys()
    for path, layer in after.items():
        assert layer.total == 2 * np.prod(rows[path].after) <= before[path].total == 2 * np.prod(rows[path].before)


def test_a_dense_run_stands_for_the_network_before_pruning(trained, quick, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    for name, width in (("dense", 0.5), ("other", 0.1)):
        options = {"model": "lenet_300_100", "width": width, "epochs": 1, "test_images": None}
        training.run(quick(method="dense", output_dir=tmp_path / name, **options))
    result = report.report(report.Options(copy, dense=tmp_path / "dense", repeats=1))
    told = json.loads((tmp_path / "dense" / "summary.json").read_text())["test_accuracy"]
    assert result["stages"][0]["accuracy"] == pytest.approx(told, abs=1e-7)
    assert result["stages"][0]["kept"] == result["stages"][0]["weights"]
    with pytest.raises(UserError, match=r"^--dense .*other must be a run of the same network\.$"):
        report.report(report.Options(copy, dense=tmp_path / "other", repeats=1))
    with pytest.raises(UserError, match=r"^--dense .*copy must be a run by --method dense, got 'magnitude'\.$"):
        report.report(report.Options(trained, dense=copy, repeats=1))


def test_the_page_needs_nothing_else(reported):
    folder, result = reported
    page = (folder / "report.html").read_text()
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(result))
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page) == []
    assert page.count("<img ") == 2
    for kind in ("theoretical", "measured"):
        assert f">{kind}</th>" in page
    for stage in result["stages"]:
        assert f"<th>{stage['name']}</th>" in page
        assert f"{stage['disk']:,}" in page
        assert stage["accuracy"] is None or f"{stage['accuracy']:.2%}" in page
    for name in ("stages.png", "operations.png"):
        assert (folder / name).stat().st_size > 10_000


def test_weights_of_a_stage_are_those_of_its_files(reported):
    folder, result = reported
    stored = files.load_arrays(folder / "params.safetensors")
    params = {name: x for name, x in stored.items() if name.startswith("params/")}
    size = fj.save_sparse(folder / "again", params)
    assert abs(size - result["stages"][1]["disk"]) < 100


def test_wrong_folders_and_options_are_told(trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^--repeats must be at least 1, got 0\."):
        report.report(report.Options(trained, repeats=0))
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .* must be the folder of a run, and there is no config\.json"):
        report.main()
    copy = shutil.copytree(trained, tmp_path / "copy")
    stored = files.load_arrays(copy / "params.safetensors")
    broken = stored["params/dense_1/bias"] * np.nan
    files.save_arrays(copy / "params.safetensors", stored | {"params/dense_1/bias": broken})
    run = finished.read(copy)
    accuracy = finished.accuracy(run.setup.steps, run.model, run.setup.data.test)
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | {"test_accuracy": accuracy}))
    with pytest.raises(UserError, match=r"must be a run that can be made smaller: .*finite"):
        report.report(report.Options(copy, repeats=1))


@pytest.mark.slow
@pytest.mark.parametrize("score", ["magnitude", "synflow"])
def test_networks_of_random_weights(score):
    options = smaller.Options(score=score, width=0.1, repeats=1)
    lines = smaller.measure("conv2", 0.97, options)
    assert [line[1] for line in lines] == NAMES
    weights, kept = ([int(line[i].replace(",", "")) for line in lines] for i in (2, 3))
    assert kept[1] == kept[2] == -(-weights[0] * 3 // 100)
    assert weights[3] == weights[4] < weights[1] == weights[0]
    assert float(lines[3][-1]) < 1e-5
    assert 0 < float(lines[4][-1]) < 0.1
