"""The example that searches for lottery tickets under adversarial training."""

import importlib.util
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flipout_jax as fj

FILE = Path(__file__).parents[2] / "examples" / "adversarial_tickets.py"
WEIGHTS = 64 * 256 + 256 * 10


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("adversarial_tickets", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernels(tree):
    return {name: np.asarray(layer["kernel"]) for name, layer in tree.items()}


def test_tickets_keep_exact_counts_and_learn_to_resist(program):
    found = list(program.search(sparsity=0.75, rounds=2, steps=20, every=10))
    assert [ticket.round for ticket, _ in found] == [0, 1, 2]
    kept = [sum(int(mask.sum()) for mask in kernels(ticket.masks).values()) for ticket, _ in found]
    assert kept == [WEIGHTS, WEIGHTS // 2, WEIGHTS // 4]
    for ticket, curve in found:
        masks = kernels(ticket.masks)
        for name, kernel in kernels(ticket.params).items():
            assert not kernel[~masks[name]].any()
        assert len(curve) == 2
        # Chance is a tenth.
        assert curve[-1] > 0.3


def test_every_training_starts_from_the_initial_values(program):
    start = program.init(jax.random.key(0))
    for ticket, curve in program.search(sparsity=0.5, rounds=1, steps=0):
        rewound = fj.apply_masks(start, ticket.masks)
        for got, wanted in zip(jax.tree.leaves(ticket.params), jax.tree.leaves(rewound), strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert curve == []


def test_the_attack_raises_the_loss_within_its_ball(program):
    params = program.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (32, 64))
    labels = jnp.arange(32) % 10
    changed = program.attacked(params, images, labels, jax.random.key(2))
    assert jnp.abs(changed - images).max() <= program.EPSILON + 1e-6
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert program.loss_fn(params, changed, labels) > program.loss_fn(params, images, labels) + 0.1


@pytest.mark.slow
def test_it_runs_as_a_script(capsys):
    runpy.run_path(str(FILE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["0.00%", "50.00%", "75.00%", "87.50%", "93.75%"]
