"""The long run passes in short, and finds what it is there to find."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import soak

OPTIONS = soak.Options(steps=2_000, prunings=10, every=200)


def broken():
    return {finding.what for finding in soak.run(OPTIONS) if not finding.fine}


def with_step(monkeypatch, change):
    """Lets the long run take `change(step)` in place of its step."""
    make = soak.make

    def changed(schedule):
        step, *rest = make(schedule)
        return change(step), *rest

    monkeypatch.setattr(soak, "make", changed)


def test_a_long_run_keeps_its_promises():
    assert broken() == set()


def test_a_leak_is_found(monkeypatch):
    leaked = []

    def change(step):
        def leaky(params, state):
            params, state = step(params, state)
            leaked.append(jnp.copy(params["dense_1"]["kernel"]))
            return params, state

        return leaky

    with_step(monkeypatch, change)
    assert broken() == {"as many live arrays"}


def test_a_second_compilation_is_found(monkeypatch):
    def change(step):
        def changing(params, state):
            params, state = step(params, state)
            if int(state.count) == 1_500:
                state = state._replace(count=jax.lax.convert_element_type(state.count, jnp.uint32))
            return params, state

        return changing

    with_step(monkeypatch, change)
    assert broken() >= {"one trace of the step", "nothing is compiled later"}


@pytest.mark.parametrize("what", ["pruned weights are exactly 0", "weights are finite"])
def test_weights_that_are_not_what_they_should_be_are_found(monkeypatch, what):
    added = {"pruned weights are exactly 0": 1.0, "weights are finite": jnp.inf}[what]

    def change(step):
        def wrong(params, state):
            params, state = step(params, state)
            return jax.tree.map(lambda w: w + added if w.shape == (64, 4) else w, params), state

        return wrong

    with_step(monkeypatch, change)
    assert what in broken()


def test_masks_that_come_back_are_found(monkeypatch):
    def change(step):
        def back(params, state):
            params, state = step(params, state)
            if int(state.count) == 1_200:
                state = state._replace(masks=jax.tree.map(jnp.ones_like, state.masks))
            return params, state

        return back

    with_step(monkeypatch, change)
    assert broken() >= {"masks only shrink", "kept weights are exactly ceil((1 - s) N)"}
