"""What a layer is: rules, trees of integers, their checks."""

import jax
import jax.numpy as jnp
import optax
import pytest

import flipout_jax as fj
from flipout_jax._stacked import all_layer_axes, check_stacked, layer_axes

HOLE = optax.MaskedNode()
PARAMS = {"head": {"kernel": jnp.ones((4, 2))}, "layers": {"bias": jnp.ones((3, 4)), "kernel": jnp.ones((3, 2, 4, 4))}}


def test_a_rule_a_function_and_a_tree_say_the_same():
    expected = [0, 1, 1]
    assert all_layer_axes(fj.stacked("^layers"), PARAMS) == expected
    assert all_layer_axes(lambda path, leaf: int("layers" in fj.path_string(path)), PARAMS) == expected
    assert all_layer_axes({"head": {"kernel": 0}, "layers": {"bias": 1, "kernel": 1}}, PARAMS) == expected
    assert all_layer_axes(None, PARAMS) == [0, 0, 0]
    assert layer_axes(fj.stacked("^layers.*kernel", axes=2), PARAMS, [True, False, True]) == [0, 2]


def test_holes_have_no_layers():
    params = {"a": HOLE, "b": jnp.ones((3, 4))}
    assert all_layer_axes(fj.stacked("b"), params) == [0, 1]
    # The pattern is for the other part of the parameters.
    assert all_layer_axes(fj.stacked("a"), params) == [0, 0]
    assert all_layer_axes({"a": HOLE, "b": 1}, params) == all_layer_axes({"a": 1, "b": 1}, params) == [0, 1]
    assert layer_axes(fj.stacked("b"), params, [False, True]) == [1]


def test_a_scalar_of_each_layer_may_have_noise_and_is_not_prunable():
    params = {"a": jnp.ones(3), "b": jnp.ones((3, 2))}
    assert all_layer_axes(fj.stacked("."), params) == [1, 1]
    assert layer_axes(fj.stacked("."), params, [False, True]) == [1]
    with pytest.raises(ValueError, match=r"^`stacked` must leave each layer .* an axis, got 1 for 'a' of shape \(3,\)"):
        layer_axes(fj.stacked("."), params, [True, True])


@pytest.mark.parametrize("value", [-1, 3, 1.0, True, "1", None, jnp.array(1)])
def test_a_number_that_is_none_of_axes_is_told_with_its_path(raises, value):
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"^`stacked` must give the number .* from 0 to 2 for 'b' .* got "):
        all_layer_axes(lambda path, leaf: value if fj.path_string(path) == "b" else 0, params)
    if value is not None:
        with pytest.raises(ValueError, match=r"^`stacked` must give the number .* from 0 to 2 for 'a' .* got "):
            all_layer_axes({"a": value, "b": 0}, params)


def test_more_axes_than_an_array_has_are_told():
    with pytest.raises(ValueError, match=r"'layers/bias' of shape \(3, 4\), got 3\."):
        all_layer_axes(fj.stacked("layers", axes=3), PARAMS)


def test_a_pattern_that_matches_nothing_lists_paths():
    with pytest.raises(
        ValueError, match=r"got stacked\('blocks', axes=2\), which matches none of: head/kernel, layers/bi"
    ):
        all_layer_axes(fj.stacked("blocks", axes=2), PARAMS)


@pytest.mark.parametrize("value", [{"head": 0}, [0, 1, 1], 1])
def test_a_tree_of_another_structure_is_told(value):
    with pytest.raises(ValueError, match=r"^`stacked` must be a rule or a tree of integers with the structure"):
        all_layer_axes(value, PARAMS)


def test_a_function_of_other_arguments_is_told():
    with pytest.raises(ValueError, match=r"^`stacked` must be a rule, a function of \(key path, leaf\), got .* fails"):
        all_layer_axes(lambda path: 1, PARAMS)


@pytest.mark.parametrize("pattern", ["(", None, 3])
def test_a_pattern_that_is_no_regular_expression_raises(raises, pattern):
    with raises("pattern", pattern):
        fj.stacked(pattern)


@pytest.mark.parametrize("axes", [0, -1, 1.5, True, None])
def test_a_wrong_number_of_axes_raises(raises, axes):
    with raises("axes", axes):
        fj.stacked("layers", axes=axes)


def test_a_string_is_told_the_rule():
    with pytest.raises(ValueError, match=r"such as flipout_jax.stacked\('layers'\)"):
        check_stacked("layers")
    for value in (None, fj.stacked("layers"), {"a": 1}):
        check_stacked(value)


def test_a_rule_is_a_value():
    assert fj.stacked("a", axes=2) == fj.stacked("a", axes=2) != fj.stacked("a")
    assert jax.tree.leaves(fj.stacked("a")) == [fj.stacked("a")]
