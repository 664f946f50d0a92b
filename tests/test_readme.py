"""The README's example runs, and does what it says."""

import math
import re
from pathlib import Path

import jax
import optax
import pytest

import flipout_jax as fj

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.promotes
def test_the_example(capsys, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    example, choice, growing, recipe, before, reparam, after = blocks
    names = {}
    exec(example, names)
    n = 32 * 64 + 64
    assert fj.summary(names["params"], names["opt_state"]).total.kept == n // 16
    assert f"{n // 16}" in capsys.readouterr().out
    assert names["loss"](names["params"]) < 0.2
    monkeypatch.chdir(tmp_path)
    exec(after, names)
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "6.25%"
    assert (tmp_path / "network.safetensors").stat().st_size < 4 * n / 4
    fj.check(names["params"], names["opt_state"])
    for block in (choice, growing, recipe):
        exec(block, names)
        state = names["optimizer"].init(names["params"])
        updates, _ = jax.jit(names["optimizer"].update)(names["params"], state, names["params"])
        assert jax.tree.structure(updates) == jax.tree.structure(names["params"])
    start = names["params"] = {name: {"kernel": abs(layer["kernel"]) + 0.01} for name, layer in names["params"].items()}
    exec(before, names)
    assert fj.sparsity(start) == 0
    assert sum(int(mask.sum()) for mask in jax.tree.leaves(names["masks"])) == math.ceil(n / 10)
    fj.check(names["params"], names["optimizer"].init(names["params"]))
    names |= {"key": jax.random.key(0), "mask_key": jax.random.key(1)}
    exec(reparam, names)
    assert 0.5 < float(jax.numpy.mean(names["weights"]["dense_0"]["kernel"] != 0)) < 0.7
    fj.reparam.load("network", names["params"])


@pytest.mark.promotes
def test_the_code_of_the_method_prunes():
    blocks = re.findall(r"```python\n(.*?)```", (README.parent / "docs" / "method.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names = {"fj": fj, "jax": jax, "optax": optax}
        exec(block, names)
        params = {"dense": {"kernel": jax.numpy.ones((20, 30))}}
        state = names["optimizer"].init(params)
        updates, _ = jax.jit(names["optimizer"].update)(params, state, params)
        assert updates["dense"]["kernel"].shape == (20, 30)
