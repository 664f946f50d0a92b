"""What breaks in JaxPruner on current JAX: each of its faults is a test that passes here, or one that is named here."""

import ast
import functools
import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import flipout_jax as fj

TESTS = Path(__file__).parents[1]
# The faults that tests of single modules already look for.
ELSEWHERE = {
    "tuples, named tuples, nested lists, NNX states and Equinox modules fail": (
        "integration/test_optimizers.py::test_keeps_its_promises"
    ),
    "extra arguments do not reach the inner optimizer": (
        "test_prune.py::test_the_inner_optimiser_gets_masked_gradients_and_the_callers_extra_arguments_alone"
    ),
    "partitions break its init": "integration/test_optax.py::test_prune_of_a_part_of_the_tree",
    "meshes with explicit sharding raise": "integration/test_sharding.py::test_8_devices_equal_one_in_the_quick_cases",
    "optax.tree.map_params fails": "integration/test_transforms.py::test_map_params_sees_what_mirrors_the_parameters",
    "a sparsity of 1.5 or -0.2 is accepted": "test_schedules.py::test_a_wrong_sparsity_raises",
    "a function with such a target is accepted": "test_target.py::test_a_function_out_of_range_at_the_start_raises",
}


@pytest.mark.parametrize("test", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_fault_has_a_test_elsewhere(test):
    file, name = test.split("::")
    functions = {node.name for node in ast.parse((TESTS / file).read_text("utf-8")).body if hasattr(node, "name")}
    assert name in functions


def names_used(source):
    """Returns the dotted names of JAX and optax in the code of a module, those inside of functions included."""
    tree = ast.parse(source)
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname}
            imported |= {alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names if not alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = set(imported.values())
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in imported:
            found.add(".".join([imported[node.id], *reversed(parts)]))
    return {name for name in found if name.split(".")[0] in ("jax", "optax")}


def resolve(name):
    """Returns what has a dotted name; a deprecated one warns, which is an error."""

    def member(owner, part):
        if hasattr(owner, part):
            return getattr(owner, part)
        return importlib.import_module(f"{owner.__name__}.{part}")

    top, *parts = name.split(".")
    return functools.reduce(member, parts, importlib.import_module(top))


def test_every_name_of_jax_and_optax_that_is_used_is_there_and_public():
    """`jax.tree_map`, which JaxPruner uses, was removed."""
    names = set()
    for file in Path(fj.__file__).parent.rglob("*.py"):
        names |= names_used(file.read_text("utf-8"))
    assert {"jax.tree.map", "jax.numpy.where", "optax.safe_increment"} <= names
    assert not [name for name in names if re.search(r"\._[^_]", name)]
    for name in names:
        assert resolve(name) is not None, name
    assert names_used("import jax\njax.tree_map") == {"jax", "jax.tree_map"}
    with pytest.raises(ImportError, match=r"jax\.tree_map"):
        resolve("jax.tree_map")


# Optimizers of optax that take a learning rate.
OPTIMIZERS = (
    *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad"),
    *("fromage", "lamb", "lars", "lion", "noisy_sgd", "novograd", "optimistic_gradient_descent", "radam", "rmsprop"),
    *("rprop", "sgd", "sign_sgd", "sm3", "yogi", "contrib.ademamix", "contrib.madgrad", "contrib.muon"),
    *("contrib.prodigy", "contrib.schedule_free_adamw"),
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_return_under_an_optimizer_whose_state_has_any_class(name, params):
    """Its SET and RigL know the states of 10 of 27 optimizers, by the names of their classes."""
    options = {"key": jax.random.key(0)} if name == "noisy_sgd" else {}
    inner = resolve(f"optax.{name}")(0.1, **options)
    growth = fj.growth.random(0.5, key=jax.random.key(0), every=2)
    optimizer = fj.prune(inner, fj.schedules.constant(0.5), growth=growth)
    state = optimizer.init(params)
    # Abstract values do, as its error comes while it is traced.
    updates, after = jax.eval_shape(optimizer.update, params, state, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


def test_there_is_no_second_call_to_forget_nor_to_break_in_a_chain(params, gradient):
    """Its masks were 80 % sparse, and its parameters 0 %, where `post_gradient_update` was forgotten."""
    pruner = fj.prune(optax.adam(0.1), fj.schedules.constant(0.8))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), pruner)
    state = optimizer.init(params)
    updates, state = optimizer.update(gradient(params, 0), state, params)
    new = optax.apply_updates(params, updates)
    assert fj.sparsity(new) == 0.8
    fj.check(new, state)


def test_packed_masks_are_refused(params):
    """Bytes of masks, eight weights each, were multiplied into gradients: an update 234 times too large."""
    packed = {
        name: {"bias": optax.MaskedNode(), "kernel": jnp.packbits(layer["kernel"] > 0)}
        for name, layer in params.items()
    }
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.constant(0.8), initial_masks=packed)
    with pytest.raises(ValueError, match=r"^`initial_masks` must .*'dense_0/kernel'.* got uint8\[5\]"):
        optimizer.init(params)


@pytest.mark.parametrize("allocation", [fj.global_(), fj.uniform(), fj.per_output(out_axis=0)])
def test_scores_that_are_nan_do_not_wipe_a_layer(allocation):
    """Three scores of four that are NaN wiped the layer at a sparsity of one half."""
    scores = jnp.array([[jnp.nan, jnp.nan, 1.0, jnp.nan]])
    saliency = fj.magnitude()._replace(score=lambda state, params: {"kernel": scores})
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.constant(0.5), saliency=saliency, allocation=allocation)
    params = {"kernel": jnp.ones((1, 4))}
    updates, state = optimizer.update(params, optimizer.init(params), params)
    # Of those that rank lowest, the first is kept beside the one with a score.
    assert state.masks["kernel"].tolist() == [[True, False, True, False]]
    assert (optax.apply_updates(params, updates)["kernel"] != 0).tolist() == [[True, False, True, False]]


@pytest.mark.slow
def test_a_count_that_float32_does_not_hold_is_exact():
    """Of 2**25 + 1 weights, one too few was kept: their number times a float32 was rounded."""
    params = {"kernel": jnp.ones((1, 2**25 + 1), jnp.float16)}
    # Small scores, as their number of bits is that of the passes over them.
    saliency = fj.magnitude()._replace(score=lambda state, params: jax.tree.map(lambda w: w.astype(jnp.uint8), params))
    optimizer = fj.prune(optax.sgd(0.0), fj.schedules.constant(0.5), saliency=saliency)
    _, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert int(jnp.sum(state.masks["kernel"], dtype=jnp.uint32)) == 2**24 + 1
