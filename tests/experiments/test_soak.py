"""The long run passes in short, and finds what it is there to find."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import soak

OPTIONS = soak.Options(steps=1_000, prunings=10, every=100)


def broken():
    return {finding.what for finding in soak.run(OPTIONS) if not finding.fine}


def after_each_step(monkeypatch, change):
    """Lets the long run go on, after each step, with `change(params, state)`."""
    make = soak.make

    def changed(schedule):
        step, *rest = make(schedule)
        return lambda params, state: change(*step(params, state)), *rest

    monkeypatch.setattr(soak, "make", changed)


def test_a_long_run_keeps_its_promises():
    assert broken() == set()


def test_a_leak_is_found(monkeypatch):
    leaked = []

    def leak(params, state):
        leaked.append(jnp.copy(params["dense_1"]["kernel"]))
        return params, state

    after_each_step(monkeypatch, leak)
    assert broken() == {"as many live arrays"}


def test_a_second_compilation_is_found(monkeypatch):
    def another_dtype(params, state):
        if int(state.count) == 750:
            state = state._replace(count=jax.lax.convert_element_type(state.count, jnp.uint32))
        return params, state

    after_each_step(monkeypatch, another_dtype)
    assert broken() >= {"one trace of the step", "nothing is compiled later"}


@pytest.mark.parametrize(
    ("what", "added"), [("pruned weights are exactly 0", 1.0), ("weights are finite", float("inf"))]
)
def test_weights_that_are_not_what_they_should_be_are_found(monkeypatch, what, added):
    def add(params, state):
        return jax.tree.map(lambda w: w + added if w.shape == (64, 4) else w, params), state

    after_each_step(monkeypatch, add)
    assert what in broken()


def test_masks_that_come_back_are_found(monkeypatch):
    def come_back(params, state):
        if int(state.count) == 600:
            state = state._replace(masks=jax.tree.map(jnp.ones_like, state.masks))
        return params, state

    after_each_step(monkeypatch, come_back)
    assert broken() >= {"masks only shrink", "kept weights are exactly ceil((1 - s) N)"}
