"""The warning about what a selection leaves out: when, of what, and once."""

import pickle
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax._left_out import left_out, warn_left_out
from flipout_jax._prunable import select

KEY = jax.random.key(0)
HOLE = optax.MaskedNode()


def leaf(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def caught(prunable, params):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_left_out(prunable, params, select(prunable, params))
    return [warning.message for warning in found]


def test_it_names_paths_and_shares_once_the_largest_first():
    params = {"dense": {"kernel": leaf(10, 10)}, "theta": leaf(5, 10), "phi": leaf(5, 2, 15)}
    (warning,) = caught(fj.kernels, params)
    assert isinstance(warning, fj.LeftOutWarning)
    assert warning.paths == ("phi", "theta")
    assert str(warning).startswith("66.7 % of all weights are left dense: kernels does not take them for kernels")
    assert "phi (50.0 %), theta (16.7 %)" in str(warning)
    assert pickle.loads(pickle.dumps(warning)).paths == warning.paths


def test_what_is_meant_to_be_dense_is_not_named():
    params = {
        "dense": {"kernel": leaf(2, 2), "bias": leaf(9, 9)},
        "wte": {"weight": leaf(9, 9)},
        "ln_1": {"weight": leaf(9, 9), "scale": leaf(9, 9)},
        "theta": leaf(900),
        "count": leaf(9, 9, dtype="int32"),
        "hole": HOLE,
    }
    assert caught(fj.kernels, params) == []
    assert left_out(params, select(fj.kernels, params)) == []


@given(st.integers(0, 40))
def test_it_warns_above_five_percent(parts):
    params = {"kernel": leaf(10, 10), **{f"theta{i}": leaf(1, 1) for i in range(parts)}}
    assert bool(caught(fj.kernels, params)) == (parts / (100 + parts) > 0.05)


def test_a_selection_of_your_own_is_taken_as_it_is():
    params = {"dense": {"kernel": leaf(2, 2)}, "theta": leaf(9, 9)}
    tree = {"dense": {"kernel": True}, "theta": False}
    for prunable in (fj.by_path("kernel"), lambda path, x: fj.kernels(path, x), tree):
        assert caught(prunable, params) == []
    assert len(caught(fj.kernels, params)) == 1


def test_a_complex_matrix_is_named():
    params = {"dense": {"kernel": leaf(2, 2)}, "fourier": {"kernel": leaf(2, 2, dtype="complex64")}}
    assert caught(fj.kernels, params)[0].paths == ("fourier/kernel",)
    (warning,) = caught(fj.by_path("kernel"), params)
    assert warning.paths == ("fourier/kernel",)
    assert str(warning) == (
        "by_path('kernel') matches complex parameters, which cannot be pruned and stay dense: "
        "fourier/kernel (complex64)."
    )
    assert caught(fj.by_path("dense"), params) == []


class Mine(eqx.Module):
    layers: eqx.nn.Sequential
    theta: jax.Array
    weight: jax.Array

    def __init__(self, key):
        self.layers = eqx.nn.Sequential([eqx.nn.Embedding(9, 9, key=key), eqx.nn.Linear(2, 2, key=key)])
        self.theta = jnp.ones((2, 9))
        self.weight = jnp.ones(9)


def test_with_kernels_of_modules_say_what_is_left_out():
    model = Mine(KEY)
    (warning,) = caught(fj.kernels_of(model), eqx.filter(model, eqx.is_inexact_array))
    assert warning.paths == ("theta",)
    assert "kernels_of(Mine)" in str(warning)
    # A stack of vectors is no matrix.
    stack = eqx.filter_vmap(Mine)(jax.random.split(KEY, 3))
    params = eqx.filter(stack, eqx.is_inexact_array)
    (warning,) = caught(fj.kernels_of(stack), params)
    assert warning.paths == ("theta",)


def test_init_warns_once_and_updates_do_not():
    params = {"dense": {"kernel": jnp.ones((2, 2))}, "theta": jnp.ones((2, 2))}
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1))
    with pytest.warns(fj.LeftOutWarning) as found:
        state = optimizer.init(params)
    assert len(found) == 1
    # A warning here would be an error.
    optimizer.update(params, state, params)
    assert found[0].filename == __file__
