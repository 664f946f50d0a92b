"""Programs that start as real ones do train with their own optimizer, and prune once one line of them is changed."""

import functools
import importlib.util
import math
import os
import re
import runpy
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

import flipout_jax as fj

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
ON_MESHES = ["linen_partitioned", "nnx_mesh", "pmap", "scanned_decoder"]


class Part(NamedTuple):
    """Weights that are ranked together.

    Attributes:
      paths: a regular expression that finds their parameters.
      size: how many weights there are.
      sparsity: the fraction of them that is pruned.
      layers: how many layers of this size are stacked along the first axis of the parameter.
    """

    paths: str
    size: int
    sparsity: str
    layers: int = 1

    @property
    def kept(self):
        return math.ceil((1 - Fraction(self.sparsity)) * self.size)


# All prunable weights of each program.
PARTS = {
    "dp_sgd": [Part("kernel", 64 * 32 + 32 * 10, "0.8")],
    "equinox_vit": [Part("weight", 4 * 32 + 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 10, "0.8")],
    "haiku_state": [Part("/w$", 9 * 16 + 256 * 64 + 64 * 10, "0.9")],
    "lbfgs": [Part("kernel", 64 * 32 + 32 * 10, "0.8")],
    "linen_partitioned": [Part("Dense_./kernel", 128 * 64 + 64 * 128, "0.9")],
    "list_pytree": [Part("/0$", 64 * 64 + 64 * 32 + 32 * 10, "0.875")],
    "lora": [
        *[Part(f"layer_{i}/lora_a", 8 * size, "0.75") for i, size in enumerate((64, 96, 96))],
        *[Part(f"layer_{i}/lora_b", 8 * size, "0.75") for i, size in enumerate((96, 96, 10))],
    ],
    "mixture_of_experts": [Part(f"experts/{name}", 32 * 48, "0.9", layers=4) for name in ("wi", "wo")],
    "multi_steps": [Part("kernel", 64 * 64 + 64 * 10, "0.9")],
    "nnx_filters": [Part("head/layers/./kernel", 256 * 64 + 64 * 10, "0.9")],
    "nnx_mesh": [Part("kernel", 64 * 128 + 128 * 10, "0.9")],
    "partition": [Part("attention", 32 * 96 + 32 * 32, "0.5"), Part("mlp", 2 * 32 * 128, "0.9")],
    "pmap": [Part("kernel", 64 * 64 + 64 * 10, "0.9")],
    "scanned_decoder": [
        *[Part(f"blocks/attention/{name}/kernel", 32 * 32, "0.8", layers=3) for name in ("query", "key", "value")],
        Part("blocks/attention/out/kernel", 32 * 32, "0.8", layers=3),
        *[Part(f"blocks/{name}/kernel", 32 * 128, "0.8", layers=3) for name in ("up", "down")],
        Part("^out/kernel", 32 * 128, "0.8"),
    ],
}


def prune(inner, sparsity, **options):
    return fj.prune(inner, fj.schedules.one_shot(sparsity, step=10), **options)


def constant(inner, sparsity, **options):
    """Prunes at the first update."""
    return fj.prune(inner, lambda step: sparsity, **options)


def flipout(inner, sparsity, **options):
    schedule = fj.schedules.geometric(sparsity, begin=5, end=20, prunings=4)
    return fj.flipout(inner, schedule, key=jax.random.key(3), noise_scale=0.1, **options)


def acdc(inner, sparsity, **options):
    phases = fj.schedules.alternating(begin=5, sparse_steps=7, dense_steps=3, end=20)
    # The moments of Adam are kept, as its bias correction is not reset.
    return fj.acdc(inner, sparsity, phases, reset_momentum=False, **options)


# The methods beside each program's own, so that every method meets every kind of tree.
OTHER_METHODS = [
    ("dp_sgd", flipout),
    ("equinox_vit", acdc),
    ("haiku_state", flipout),
    ("haiku_state", constant),
    ("lbfgs", flipout),
    ("linen_partitioned", flipout),
    ("linen_partitioned", acdc),
    ("list_pytree", constant),
    ("list_pytree", acdc),
    ("lora", flipout),
    ("lora", acdc),
    ("mixture_of_experts", flipout),
    ("mixture_of_experts", acdc),
    ("multi_steps", flipout),
    ("multi_steps", acdc),
    ("nnx_filters", flipout),
    ("nnx_mesh", prune),
    ("nnx_mesh", acdc),
    ("partition", flipout),
    ("pmap", acdc),
    ("scanned_decoder", flipout),
]

compiled = []


def note_compilation(event, seconds, fun_name="", **more):
    # A function that pmap maps is compiled as `_fun`.
    if "backend_compile" in event and re.fullmatch(r"\w+\((train_steps?|_fun)\)", fun_name):
        compiled.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(note_compilation)


@functools.cache
def recipe(name):
    """The module of a program."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(name, *wrap):
    """What a program returns, after the checks of its training."""
    compiled.clear()
    params, opt_state, losses = recipe(name).train(*wrap)
    assert len(compiled) == 1, compiled
    assert len(losses) == 50
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    return params, opt_state


def by_path(tree):
    return {fj.path_string(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def described(tree):
    """The structure of a tree, and the shapes and types of its leaves."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]


def assert_pruned(name, params, opt_state):
    fj.check(params, opt_state)
    masks = fj.get_masks(opt_state)
    # What has these masks already stays as it is, so that the same step goes on with it.
    assert described(fj.apply_masks(params, masks)) == described(params)
    assert described(fj.set_masks(opt_state, masks)) == described(opt_state)
    params, masks = by_path(params), by_path(masks)
    for part in PARTS[name]:
        found = {path: masks.pop(path) for path in sorted(masks) if re.search(part.paths, path)}
        layers = np.concatenate([np.asarray(mask).reshape(part.layers, -1) for mask in found.values()], axis=1)
        assert layers.shape == (part.layers, part.size)
        assert layers.sum(1).tolist() == [part.kept] * part.layers
        for path, mask in found.items():
            assert not np.asarray(params[path])[~np.asarray(mask)].any(), path
            if name in ON_MESHES:
                assert mask.sharding.is_equivalent_to(params[path].sharding, mask.ndim), path
    # Nothing else has a mask.
    assert not masks


def test_every_recipe_is_here():
    assert {file.stem for file in RECIPES.glob("*.py")} == set(PARTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_it_trains_with_its_own_optimizer(name):
    trained(name, lambda inner, **_: inner)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_it_prunes_with_one_line_changed(name):
    params, opt_state = trained(name)
    assert_pruned(name, params, opt_state)
    total = fj.summary(params, opt_state).total
    sizes, kept = zip(*[(part.layers * part.size, part.layers * part.kept) for part in PARTS[name]], strict=True)
    assert (total.prunable, total.kept) == (sum(sizes), sum(kept))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), OTHER_METHODS, ids=lambda x: getattr(x, "__name__", x))
def test_it_prunes_by_another_method(name, method):
    # The parts of a program that have sparsities of their own say so themselves.
    wrap = functools.partial(method, sparsity=float(PARTS[name][0].sparsity))
    assert_pruned(name, *trained(name, wrap))


def test_what_is_frozen_stays():
    """Adapters change, and the network that they belong to does not."""
    program = recipe("lora")
    params, _, _ = program.train(steps=3)
    before = by_path(program.init(jax.random.key(0)))
    changed = {path for path, leaf in by_path(params).items() if (leaf != before[path]).any()}
    assert changed == {f"layer_{i}/lora_{part}" for i in range(3) for part in "ab"}


def test_a_pruning_invalidates_what_a_line_search_knows():
    """The 20th step prunes, so the value that the line search has found there is not that of the weights any more."""
    program = recipe("lbfgs")
    params, opt_state, _ = program.train(steps=20)
    value, grads = optax.value_and_grad_from_state(program.loss_fn)(params, state=opt_state, **program.data())
    true_value, true_grads = jax.value_and_grad(program.loss_fn)(params, **program.data())
    assert float(value) == pytest.approx(float(true_value), rel=1e-5)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), grads, true_grads)))


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_it_runs_as_a_script(name, capsys):
    runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.startswith("loss ")
    assert f"{sum(part.layers * part.kept for part in PARTS[name]):,}" in printed


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() == 8, reason="this is the process of 8 devices")
def test_on_8_devices():
    """The number of devices must be set before JAX starts, so these tests run once more in a process of their own."""
    # Devices wait for each other, each in a thread of its own, so there must be threads for all of them.
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "16"}
    env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-o", "addopts=--import-mode=importlib"]
    command += [__file__, "-k", f"({' or '.join(ON_MESHES)}) and not script"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=RECIPES.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{2 * len(ON_MESHES) + sum(name in ON_MESHES for name, _ in OTHER_METHODS)} passed" in done.stdout
