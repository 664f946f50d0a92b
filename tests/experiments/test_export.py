"""Files of a run for other programs: read there, and with the same logits."""

import importlib.util
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import export, files
from experiments.after import finished
from experiments.errors import UserError
from experiments.options.config import Config
from experiments.run import training

NAMES = ["pruned", "8bit", "compacted", "compacted-8bit"]
HAS_ONNX = importlib.util.find_spec("jax2onnx") is not None
# A program that knows JAX alone.
READER = """
import sys
import numpy as np
from jax import export
images = np.load(sys.argv[1])
with open(sys.argv[2], "rb") as stream:
    function = export.deserialize(bytearray(stream.read()))
assert function.platforms == ("cpu", "cuda", "tpu"), function.platforms
logits = np.concatenate([function.call(images[:1]), function.call(images[1:])])
assert not {"flax", "flipout_jax", "experiments"} & set(sys.modules)
np.save(sys.argv[3], logits)
"""


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The folder of a run with its files, and what was said of them."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("exported") / "run")
    return folder, export.export(export.Options(folder))


def test_every_network_in_every_format(exported):
    folder, found = exported
    assert [one.file for one in found] == [f"{name}.{form}" for name in NAMES for form in ("jax", "safetensors")]
    sizes = {one.file: one.bytes for one in found}
    assert sizes == {file.name: file.stat().st_size for file in (folder / "export").iterdir()}
    for form in ("jax", "safetensors"):
        assert sizes[f"compacted.{form}"] < 0.7 * sizes[f"pruned.{form}"]
        assert sizes[f"8bit.{form}"] < 0.5 * sizes[f"pruned.{form}"]
        assert sizes[f"compacted-8bit.{form}"] < sizes[f"8bit.{form}"]
    assert all((one.differs_by is None) == one.file.endswith("safetensors") for one in found)
    assert all(one.differs_by <= 1e-5 for one in found if one.differs_by is not None)


def test_arrays_are_those_of_the_network(exported):
    folder, _ = exported
    pruned, integers, small = (files.load_arrays(folder / "export" / f"{name}.safetensors") for name in NAMES[:3])
    for name, array in files.load_arrays(folder / "params.safetensors").items():
        if name.startswith("params/"):
            np.testing.assert_array_equal(pruned[name.removeprefix("params/")], array)
    assert integers["dense_0/kernel"].dtype == np.int8
    np.testing.assert_array_equal(integers["dense_0/kernel"] != 0, pruned["dense_0/kernel"] != 0)
    assert small["dense_1/kernel"].shape[0] == small["dense_0/kernel"].shape[1] < pruned["dense_0/kernel"].shape[1]


@pytest.mark.slow
def test_jax_alone_runs_the_file(exported, tmp_path):
    folder, _ = exported
    run = finished.read(folder)
    images = next(finished.batches(run.setup.data.test))[0][:5]
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", READER, tmp_path / "images.npy", folder / "export" / "compacted.jax"]
    subprocess.run([*command, tmp_path / "logits.npy"], check=True, timeout=120)
    logits = run.model(run.setup.steps.inputs(jnp.asarray(images)))
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, atol=1e-5 * float(abs(logits).max()))


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx, which CI has in an environment of its own")
def test_onnxruntime_runs_the_file(exported):
    folder, _ = exported
    found = export.export(export.Options(folder, formats=("onnx",)))
    assert [one.file for one in found] == [f"{name}.onnx" for name in NAMES]
    assert max(one.differs_by or 0 for one in found) <= 1e-5
    assert found[1].bytes < 0.5 * found[0].bytes
    images = next(finished.batches(finished.read(folder).setup.data.test))[0][:5]
    file = folder / "export" / "compacted.onnx"
    # One of another number of images.
    logits = export._run_onnx(file, images)
    assert logits.shape == (5, 10)
    np.testing.assert_allclose(export._run_onnx(file, images[:1]), logits[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(HAS_ONNX, reason="needs an environment without the extra onnx")
def test_what_onnx_needs_is_told_before_anything_is_made(trained):
    with pytest.raises(UserError, match=r"jax2onnx and onnxruntime: pip install .*\[onnx\]"):
        export.export(export.Options(trained, formats=("jax", "onnx")))
    assert not (trained / "export").exists()


def test_a_file_with_other_logits_is_refused(trained, tmp_path, monkeypatch):
    copy = shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.setattr(export, "_run_jax", lambda file, images: np.zeros((len(images), 10)))
    with pytest.raises(UserError, match=r"pruned\.jax must give the same logits, and they differ by 1\.0e\+00"):
        export.export(export.Options(copy, formats=("jax",)))


@pytest.mark.slow
def test_convolutions_of_images_brought_to_a_size(dark_and_light, tmp_path):
    options = {"model": "lenet5", "width": 0.2, "image_size": 16, "normalization": "image", "batch_size": 4}
    training.run(
        Config(data=f"folder:{dark_and_light}", output_dir=tmp_path / "run", epochs=1, sparsity=0.5, **options)
    )
    formats = ("jax", "onnx") if HAS_ONNX else ("jax",)
    found = export.export(export.Options(tmp_path / "run", formats=formats))
    assert len(found) == 4 * len(formats)
    content = bytearray((tmp_path / "run" / "export" / "8bit.jax").read_bytes())
    (x,) = jax.export.deserialize(content).in_avals
    assert (x.shape[1:], x.dtype) == ((16, 16, 1), np.uint8)


def test_wrong_options_are_told(trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^--formats must name at least one format"):
        export.export(export.Options(trained, formats=()))
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .* must be the folder of a run"):
        export.main()
    summary = json.loads((trained / "summary.json").read_text())
    copy = shutil.copytree(trained, tmp_path / "copy")
    (copy / "summary.json").write_text(json.dumps(summary | {"test_accuracy": 0.1}))
    with pytest.raises(UserError, match=r"must be tested as it was"):
        export.export(export.Options(copy))
