"""Finished runs in 8 bits: accuracies, files, and folders that hold no such run."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

from experiments import files, quantize
from experiments.after import finished
from experiments.errors import UserError
from experiments.run import training


def test_little_accuracy_is_lost(trained, capsys):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.8
    result = quantize.quantize(quantize.Options(trained, per_layer=True))
    assert result.test_accuracy_before == pytest.approx(summary["test_accuracy"], abs=1e-7)
    assert result.test_accuracy > summary["test_accuracy"] - 0.02
    assert result.sparsity_before == summary["sparsity"] <= result.sparsity < summary["sparsity"] + 0.02
    assert result.bytes < 0.35 * result.bytes_before
    assert json.loads((trained / "quantized.json").read_text()) == json.loads(json.dumps(dataclasses.asdict(result)))
    names = [f"dense_{i}" for i in range(3)]
    assert [row["path"] for row in result.weights] == [f"{name}/kernel" for name in names]
    assert [row["path"] for row in result.outputs] == names
    assert 0 < max(row["relative_l2"] for row in result.outputs) < 0.1
    out = capsys.readouterr().out
    assert f"{summary['test_accuracy']:.2%}" in out
    assert "dense_1/kernel" in out

    stored, exact = (
        files.load_arrays(trained / "quantized.safetensors"),
        files.load_arrays(trained / "params.safetensors"),
    )
    for name in names:
        values = stored[f"{name}/kernel"]
        assert values.dtype == np.int8
        assert (values[~exact[f"masks/{name}/kernel"]] == 0).all()
        back = values * stored[f"{name}/kernel_scale"]
        np.testing.assert_allclose(
            back, exact[f"params/{name}/kernel"], atol=float(stored[f"{name}/kernel_scale"].max())
        )


def test_weights_alone(trained):
    before = json.loads((trained / "summary.json").read_text())["test_accuracy"]
    options = quantize.Options(trained, weights_only=True, weight_observer="min_max", weight_scheme="affine")
    result = quantize.quantize(options)
    assert abs(result.test_accuracy - before) < 0.02
    assert result.weights_only
    assert result.outputs is False
    stored = files.load_arrays(trained / "quantized.safetensors")
    assert not any(name.endswith("input_scale") for name in stored)


def test_outputs_too(trained):
    options = quantize.Options(trained, observer="moving_average", scheme="symmetric", outputs=True)
    before = json.loads((trained / "summary.json").read_text())["test_accuracy"]
    assert abs(quantize.quantize(options).test_accuracy - before) < 0.03
    assert "dense_0/output_scale" in files.load_arrays(trained / "quantized.safetensors")


@pytest.mark.slow
def test_a_convolution_that_streams(quick, dark_and_light, tmp_path):
    options = {"normalization": "image", "image_size": 16, "stream": True, "batch_size": 4}
    training.run(quick(model="lenet5", width=0.1, data=f"folder:{dark_and_light}", epochs=1, method="dense", **options))
    result = quantize.quantize(quantize.Options(tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert result.test_accuracy_before == pytest.approx(summary["test_accuracy"])
    assert [row["path"] for row in result.weights] == [
        "conv_0/kernel",
        "conv_1/kernel",
        "dense_0/kernel",
        "dense_1/kernel",
    ]


@pytest.mark.slow
def test_what_is_made_of_something_else(quick, tmp_path):
    training.run(quick(model="lenet_300_100", method="signed_supermask", epochs=1))
    result = quantize.quantize(quantize.Options(tmp_path / "run"))
    assert result.sparsity_before <= result.sparsity


def test_folders_without_a_finished_run_are_told(trained, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"must be the folder of a run, and there is no config\.json in it"):
        quantize.quantize(quantize.Options(tmp_path))
    copy = shutil.copytree(trained, tmp_path / "copy")
    with pytest.raises(UserError, match=r"^--outputs is for activations"):
        quantize.quantize(quantize.Options(copy, weights_only=True, outputs=True))

    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | {"test_accuracy": 0.1}))
    with pytest.raises(UserError, match=r"must be tested as it was, .*summary\.json has 10\.00%"):
        quantize.quantize(quantize.Options(copy))
    (copy / "summary.json").write_text(json.dumps(summary))

    stored = files.load_arrays(copy / "params.safetensors")
    files.save_arrays(copy / "params.safetensors", stored | {"params/dense_0/kernel": np.zeros((2, 2), np.float32)})
    with pytest.raises(UserError, match=r"params\.safetensors must hold params/dense_0/kernel of shape"):
        quantize.quantize(quantize.Options(copy))
    broken = stored["params/dense_1/bias"] * 0 + np.nan
    files.save_arrays(copy / "params.safetensors", stored | {"params/dense_1/bias": broken})
    run = finished.read(copy)
    accuracy = finished.accuracy(run.setup.steps, run.model, run.setup.data.test)
    (copy / "summary.json").write_text(json.dumps(summary | {"test_accuracy": accuracy}))
    with pytest.raises(UserError, match=r"must be a run that can be quantized: .*finite activations"):
        quantize.quantize(quantize.Options(copy))

    (copy / "summary.json").unlink()
    monkeypatch.setattr(sys, "argv", ["quantize", str(copy)])
    with pytest.raises(SystemExit, match=r"^error: .* must be the folder of a run that has finished"):
        quantize.main()

    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"seeds": 2}))
    with pytest.raises(UserError, match=r"holds the runs of 2 seeds; name one: .*seed0"):
        quantize.quantize(quantize.Options(copy))


def test_options_are_written_down(trained):
    own = dataclasses.asdict(quantize.Options(trained))
    own.pop("run")
    result = quantize.quantize(quantize.Options(trained))
    assert own.items() <= dataclasses.asdict(result).items()
