"""Pruning at initialisation: exact counts, any tree, one compilation, warnings, and what wrong input is told."""

import math
import re
import warnings
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax import _holes
from flipout_jax.at_init import _problem, _snip

SHAPES = [(4, 9), (9, 2)]
SIZES = [36, 18]


def draw(seed=0):
    rng = np.random.default_rng(seed)
    return [{"bias": jnp.ones(b), "kernel": jnp.asarray(rng.standard_normal((a, b)), jnp.float32)} for a, b in SHAPES]


PARAMS = draw()
INPUTS, LABELS = np.random.default_rng(1).standard_normal((9, 4)).astype(np.float32), np.arange(9) % 2
BATCHES = [(INPUTS[:6], LABELS[:6]), (INPUTS[6:], LABELS[6:])]


def apply(params, inputs):
    for layer in params[:-1]:
        inputs = jnp.tanh(inputs @ layer["kernel"] + layer["bias"][None])
    return inputs @ params[-1]["kernel"]


LOSS = fj.at_init.cross_entropy(apply)
# All of one signature, (params, sparsity, **options).
METHODS = {
    "snip": lambda params, s, **options: fj.at_init.snip(LOSS, params, BATCHES[:1], s, iterations=2, **options),
    "force": lambda params, s, **options: fj.at_init.force(LOSS, params, BATCHES[:1], s, iterations=2, **options),
    "grasp": lambda params, s, **options: fj.at_init.grasp(LOSS, params, BATCHES[:1], s, **options),
    "synflow": lambda params, s, **options: fj.at_init.synflow(apply, params, INPUTS[:1], s, iterations=2, **options),
    "random": lambda params, s, **options: fj.at_init.random(jax.random.key(0), params, s, **options),
    "magnitude": fj.at_init.magnitude,
}


def ceil_kept(sparsity, size):
    return math.ceil((1 - Fraction(str(sparsity))) * size)


def left(masks):
    """How many weights stay of each kernel."""
    return [int(mask.sum()) for mask in jax.tree.leaves(masks)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
# Each call compiles its gradient anew.
@settings(max_examples=4)
@given(sparsity=st.integers(0, 98).map(lambda n: n / 100), guard=st.sampled_from([0, 3]), seed=st.integers(0, 99))
def test_exactly_the_asked_number_stays_with_any_allocation(method, sparsity, guard, seed):
    params = draw(seed)
    keep = ceil_kept(sparsity, sum(SIZES))
    guard = guard if 2 * guard <= keep else 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Nothing is left of", UserWarning)
        masks = method(params, sparsity, allocation=fj.global_(min_kept_per_layer=guard))
    assert all(layer["bias"] == optax.MaskedNode() for layer in masks)
    assert [(layer["kernel"].shape, layer["kernel"].dtype) for layer in masks] == [(shape, bool) for shape in SHAPES]
    assert sum(left(masks)) == keep
    assert min(left(masks)) >= guard
    each = method(params, sparsity, allocation=fj.uniform())
    assert left(each) == [ceil_kept(sparsity, size) for size in SIZES]


# Each list of shapes is a compilation.
@settings(max_examples=6)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=3),
    sparsity=st.integers(0, 999).map(lambda n: n / 1000),
    distinct=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_any_shapes_keep_the_highest_of_ties_those_of_lower_position(shapes, sparsity, distinct, seed):
    rng = np.random.default_rng(seed)
    params = [{"kernel": rng.choice(np.float32([0.5, *rng.standard_normal(distinct)]), shape)} for shape in shapes]
    flat = np.abs(np.concatenate([layer["kernel"].ravel() for layer in params]))
    keep = ceil_kept(sparsity, flat.size)
    if (1 - Fraction(str(sparsity))) * flat.size < 1:
        with pytest.raises(ValueError, match=rf"^`sparsity` must keep at least one of the {flat.size} .*{sparsity}\.$"):
            fj.at_init.magnitude(params, sparsity)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Nothing is left of", UserWarning)
        masks = fj.at_init.magnitude(params, sparsity)
    expected = np.zeros(flat.size, bool)
    expected[np.argsort(-flat, kind="stable")[:keep]] = True
    np.testing.assert_array_equal(np.concatenate([np.ravel(m) for m in jax.tree.leaves(masks)]), expected)


@pytest.mark.makes_nan
def test_nan_goes_first():
    assert fj.at_init.magnitude({"kernel": jnp.array([[jnp.nan, 1.0, jnp.nan, 0.0]])}, 0.5)["kernel"].tolist() == [
        [False, True, False, True]
    ]


@pytest.mark.parametrize("name", ["random", "magnitude"])
def test_the_controls_are_the_masks_of_prune(name, assert_same):
    key = jax.random.key(3)
    saliency = {"random": fj.random(key), "magnitude": fj.magnitude()}[name]
    optimizer = fj.prune(optax.sgd(0.0), fj.schedules.one_shot(0.7, step=1), saliency=saliency)
    _, state = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    first = (key,) if name == "random" else ()
    assert_same(getattr(fj.at_init, name)(*first, PARAMS, 0.7), state.masks)


def nnx_net():
    model = nnx.Sequential(
        nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.BatchNorm(6, rngs=nnx.Rngs(0)), nnx.Linear(6, 2, rngs=nnx.Rngs(1))
    )
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return params, lambda params, inputs: nnx.merge(graphdef, params, rest)(inputs)


def equinox_net():
    model = eqx.nn.MLP(4, 2, 6, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda params, inputs: jax.vmap(eqx.combine(params, static))(inputs)


def tuple_net():
    rng = np.random.default_rng(0)
    # With a leaf that is no float, and kernels of NumPy.
    params = (
        jnp.array(3),
        {"kernel": np.float32(rng.standard_normal((4, 6)))},
        {"kernel": np.float32(rng.standard_normal((6, 2)))},
    )
    return params, lambda params, inputs: jax.nn.relu(inputs @ params[1]["kernel"]) @ params[2]["kernel"]


@pytest.mark.promotes
@pytest.mark.parametrize("net", [nnx_net, equinox_net, tuple_net])
def test_any_tree_of_parameters_gives_masks_that_prune_takes(net):
    params, apply = net()
    loss_fn = fj.at_init.cross_entropy(apply)
    found = [
        fj.at_init.snip(loss_fn, params, iter(BATCHES[:1]), 0.6),
        fj.at_init.grasp(loss_fn, params, iter(BATCHES[:1]), 0.6),
        fj.at_init.synflow(apply, params, INPUTS, 0.6, iterations=5),
    ]
    for masks in found:
        optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.7, step=9), initial_masks=masks)
        state = optimizer.init(params)
        assert _holes.structure(state.masks) == jax.tree.structure(params) == _holes.structure(masks)
        assert left(masks) == left(state.masks)
        assert sum(left(masks)) == 15


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_parameters_with_holes_have_masks_with_the_same_holes(method, assert_same):
    """As `optax.partition` hands a part of the parameters to each transformation."""

    def with_hole(layers):
        return [{**layers[0], "frozen": optax.MaskedNode()}, layers[1]]

    # The random numbers of a weight depend on its place among all leaves, holes included.
    masks = method(with_hole(PARAMS), 0.5)
    assert _holes.structure(masks) == _holes.structure(with_hole(PARAMS))
    if method is not METHODS["random"]:
        assert_same(masks, with_hole(method(PARAMS, 0.5)))


STACK = {"kernel": jnp.stack([layer * jnp.asarray(draw(3)[0]["kernel"]) for layer in (1.0, 1e-3, 1e-6)])}
LAYERS = [{"kernel": layer} for layer in STACK["kernel"]]


def one(path, leaf):
    """The rule of parameters of which the first axis numbers layers."""
    return 1


@pytest.mark.parametrize(
    "allocation",
    [fj.uniform(), fj.per_output(), fj.global_(min_kept_per_layer=2), fj.global_(normalized=True)],
    ids=["uniform", "per_output", "guard", "normalized"],
)
def test_a_stack_is_pruned_as_its_layers_apart(allocation):
    apart = fj.at_init.magnitude(LAYERS, 0.75, allocation=allocation)
    together = fj.at_init.magnitude(STACK, 0.75, allocation=allocation, stacked=one)
    for mask, layer in zip(together["kernel"], apart, strict=True):
        np.testing.assert_array_equal(mask, layer["kernel"])


def test_the_guard_of_a_stack_is_checked_by_layers():
    with pytest.raises(ValueError, match=r"6 of 108 weights in 3 layers, got 3, which takes 9\.$"):
        fj.at_init.magnitude(STACK, 0.95, allocation=fj.global_(min_kept_per_layer=3), stacked=one)
    fj.at_init.magnitude(STACK, 0.95, allocation=fj.global_(min_kept_per_layer=3))


def test_an_emptied_layer_of_a_stack_is_named():
    with pytest.warns(fj.at_init.EmptyLayersWarning, match=r"^Nothing is left of 'kernel\[1\]', 'kernel\[2\]'"):
        fj.at_init.magnitude(STACK, 0.75, stacked=one)
    two = {"kernel": STACK["kernel"].reshape(3, 2, 18)}
    with pytest.warns(fj.at_init.EmptyLayersWarning) as caught:
        fj.at_init.magnitude(two, 0.75, stacked=lambda path, leaf: 2)
    assert caught[0].message.layers == tuple(f"kernel[{i}, {j}]" for i in (1, 2) for j in (0, 1))


@pytest.mark.parametrize("method", ["snip", "force"])
def test_each_iteration_may_see_other_batches(method, assert_same):
    find = getattr(fj.at_init, method)
    seen = []

    def batches(iteration):
        seen.append(iteration)
        return iter([(INPUTS[iteration::3], LABELS[iteration::3])])

    options = {"iterations": 3, "allocation": fj.uniform()}
    masks = find(LOSS, PARAMS, batches, 0.8, **options)
    assert seen == [0, 1, 2]
    # A last iteration on the first batch would keep other weights.
    first = find(LOSS, PARAMS, lambda iteration: batches(0), 0.8, **options)
    assert_same(first, find(LOSS, PARAMS, [(INPUTS[::3], LABELS[::3])], 0.8, **options))
    with pytest.raises(AssertionError):
        assert_same(masks, first)


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ([], r"`batches` must be a list of batches, .* got none"),
        (INPUTS, r"`batches` must be a list of batches, .* got one array"),
        ([(INPUTS, LABELS + 1)], r"`labels` must be in \[0, 2\), .* got 2\."),
        (None, r"`batches` must be a list of batches, .* got NoneType"),
    ],
)
def test_wrong_batches_of_a_later_iteration(last, said):
    with pytest.raises(ValueError, match=rf"^{said}"):
        fj.at_init.force(LOSS, PARAMS, [BATCHES, last].__getitem__, 0.5, iterations=2)


def test_masks_can_be_donated():
    jax.block_until_ready(jax.jit(lambda x: x, donate_argnums=0)(fj.at_init.magnitude(PARAMS, 0.5)))


def test_half_precision_weights_are_scored_in_float32():
    # The products of the first two are less than the least number of float16.
    params = {"kernel": jnp.array([[1e-5, 2e-5, 1.0, 2.0]], jnp.float16)}
    scales = jnp.array([1e-4, 1e-4, 1.0, 1.0], jnp.float16)
    batches = [scales, 2 * scales]
    problem = _problem.make_problem(params, 0.25, 1, fj.kernels, fj.global_())
    score = _snip.sensitivity(lambda p, batch: jnp.sum(p["kernel"][0] * batch), problem, lambda iteration: batches)
    scores = score([jnp.ones((1, 4), bool)], 0)
    expected = 1.5 * np.abs(np.float64(params["kernel"]) * np.float64(scales))
    np.testing.assert_allclose(scores[0], expected, rtol=2e-3)
    halves = [(INPUTS.astype(np.float16), LABELS)]
    params = jax.tree.map(lambda w: w.astype(jnp.float16), PARAMS)
    assert sum(left(fj.at_init.grasp(LOSS, params, halves, 0.5))) == 27
    assert sum(left(fj.at_init.synflow(apply, params, halves[0][0], 0.5, iterations=2))) == 27


def test_each_function_is_compiled_once_for_each_shape_of_a_batch():
    traces = []

    def traced(params, *rest):
        traces.append(len(rest))
        return apply(params, rest[0]) if len(rest) == 1 else LOSS(params, rest)

    def loss_fn(params, batch):
        return traced(params, *batch)

    batches = [*BATCHES, *BATCHES]
    for call, expected in (
        (lambda: fj.at_init.snip(loss_fn, PARAMS, batches, 0.5, iterations=4), 2),
        (lambda: fj.at_init.force(loss_fn, PARAMS, batches, 0.5, iterations=4), 2),
        (lambda: fj.at_init.grasp(loss_fn, PARAMS, batches, 0.5, temperature=None), 4),
        (lambda: fj.at_init.synflow(traced, PARAMS, INPUTS, 0.5, iterations=4), 1),
    ):
        traces.clear()
        call()
        assert len(traces) == expected


def test_only_the_shapes_of_floating_inputs_count(assert_same):
    def embed(params, batch):
        return params["embed"][batch["tokens"]] @ params["kernel"] * batch["scale"]

    params = {"embed": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}

    def masks(token, scale):
        inputs = {"tokens": jnp.array([token]), "scale": scale}
        return fj.at_init.synflow(embed, params, inputs, 0.5)["kernel"].tolist()

    assert masks(0, jnp.array(0.0)) == masks(0, jnp.array(-7.0)) == [[True, True], [False, False]]
    assert masks(1, jax.ShapeDtypeStruct((), jnp.float32)) == [[False, False], [True, True]]


def test_an_emptied_layer_is_told_once_to_the_caller():
    params = [{"kernel": scale * jnp.ones((2, 2))} for scale in (1.0, 1e-3, 1e-6)] + [{"kernel": jnp.ones((0, 2))}]
    said = (
        r"^Nothing is left of '1/kernel', '2/kernel', so no signal passes there\. "
        r"allocation=global_\(min_kept_per_layer=1\) prevents it\.$"
    )
    with pytest.warns(UserWarning, match=said) as caught:
        fj.at_init.magnitude(params, 0.7)
    assert [warning.filename for warning in caught] == [__file__]
    # Errors here, so that this says that there is none.
    assert left(fj.at_init.magnitude(params, 0.7, allocation=fj.global_(min_kept_per_layer=1)))[:3] == [2, 1, 1]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "magnitude"])
def test_every_method_tells_its_caller_of_emptied_layers(name):
    # The first layer has hardly any weight, and less gradient than the others.
    prunable = {"tiny": True, "layers": [{"bias": False, "kernel": True}] * 2}
    params = {"tiny": jnp.full((1, 1), 1e-20), "layers": PARAMS}
    batches = BATCHES[:1]

    def net(params, inputs):
        return apply(params["layers"], inputs + params["tiny"])

    loss_fn, options = fj.at_init.cross_entropy(net), {"prunable": prunable}
    call = {
        "snip": lambda: fj.at_init.snip(loss_fn, params, batches, 0.5, iterations=2, **options),
        "force": lambda: fj.at_init.force(loss_fn, params, batches, 0.5, iterations=2, **options),
        "grasp": lambda: fj.at_init.grasp(loss_fn, params, batches, 0.9, **options),
        "synflow": lambda: fj.at_init.synflow(net, params, INPUTS, 0.5, iterations=2, **options),
        "random": lambda: fj.at_init.random(jax.random.key(0), params, 0.9, **options),
    }[name]
    with pytest.warns(UserWarning, match=r"^Nothing is left of .*'tiny'") as caught:
        call()
    assert [warning.filename for warning in caught] == [__file__]


def snip(batches=BATCHES, loss_fn=LOSS, params=PARAMS, sparsity=0.5, **options):
    return fj.at_init.snip(loss_fn, params, batches, sparsity, **options)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], r"`batches` must be a list of batches, .* got none"),
        (iter(()), r"`batches` must be a list of batches, .* got none"),
        (INPUTS, r"`batches` must be a list of batches, .* got one array, float32\[9, 4\]; give \[batch\]"),
        ((INPUTS, LABELS), r"`batches` must .* single batch, float32\[9, 4\], int64\[9\]; give \[batch\]"),
        ({"inputs": INPUTS, "labels": LABELS}, r"`batches` must be a list of batches, .* got dict"),
        (3, r"`batches` must be a list of batches, .* got int"),
        ([INPUTS], r"`batches` must hold pairs \(inputs, labels\), .* got ndarray"),
        ([(INPUTS, LABELS, LABELS)], r"`batches` must hold pairs \(inputs, labels\), .* got 3 of them"),
        ([*BATCHES, (INPUTS, LABELS + 1)], r"`labels` must be in \[0, 2\), as the logits have 2 classes, got 2\."),
        ([(INPUTS, LABELS - 1)], r"`labels` must be in \[0, 2\), .*, got -1\."),
        ([(INPUTS, LABELS * 1.0)], r"`labels` must be integers of shape \(9,\), .* got float64\[9\]"),
        ([(INPUTS, LABELS[:5])], r"`labels` must be integers of shape \(9,\), .* \(9, 2\), got int64\[5\]"),
        ([(INPUTS, [0, 1])], r"`labels` must be integers of shape \(9,\), .* got \[0, 1\]"),
        ([(INPUTS[:0], LABELS[:0])], r"`labels` must hold at least one label"),
    ],
)
def test_wrong_batches(batches, said):
    with pytest.raises(ValueError, match=rf"^{said}"):
        snip(batches)


@pytest.mark.makes_nan
@pytest.mark.parametrize(
    ("loss_fn", "said"),
    [
        (None, r"`loss_fn` must be a function \(params, batch\) -> scalar, got None"),
        (lambda p, b: p[0]["kernel"].sum(0), r"`loss_fn` must return one float, a scalar, got float32\[9\]"),
        (lambda p, b: p[0]["kernel"].sum().astype(jnp.int32), r"`loss_fn` must return one float, .* got int32\[\]"),
        (lambda p, b: (p[0]["kernel"].sum(), 1), r"`loss_fn` must return one float, a scalar, got tuple"),
        (lambda p, b: p[0]["kernel"].sum() / 0.0, r"`loss_fn` must be finite, got a mean of -?inf over 2 batches"),
        (
            lambda p, b: jnp.sqrt(p[0]["kernel"] * 0).sum() + p[1]["kernel"].sum(),
            r"`loss_fn` must have finite gradients, got NaN or infinity for '0/kernel'\.",
        ),
        (lambda p, b: p[0]["bias"].sum(), r"`params` must give scores that tell the weights apart, got 0 for all"),
        (fj.at_init.cross_entropy(lambda p, x: 1), r"`apply` must return logits, .* got int"),
        (fj.at_init.cross_entropy(lambda p, x: p[0]["bias"] > 1), r"`apply` must return logits, .* got bool\[9\]"),
    ],
)
def test_wrong_losses(loss_fn, said):
    with pytest.raises(ValueError, match=rf"^{said}"):
        snip(loss_fn=loss_fn)


@pytest.mark.makes_nan
def test_second_derivatives_that_are_not_finite():
    def loss_fn(params, batch):
        # The gradient is 0 at 0, and its derivative infinite.
        return jnp.sum((params[0]["kernel"] * 0.0 + params[0]["kernel"] - params[0]["kernel"]) ** 1.5) + jnp.sum(
            params[1]["kernel"] ** 2
        )

    with pytest.raises(ValueError, match=r"^`loss_fn` must have finite second derivatives, .* '0/kernel'"):
        fj.at_init.grasp(loss_fn, PARAMS, BATCHES, 0.5, temperature=None)


@pytest.mark.parametrize("name", METHODS)
def test_wrong_sparsities_and_allocations(raises, name):
    for sparsity in (-0.1, 1, 1.5, "0.5", None, math.nan):
        with raises("sparsity", sparsity):
            METHODS[name](PARAMS, sparsity)
    with pytest.raises(
        ValueError, match=r"^`sparsity` must keep at least one of the 54 prunable weights, got 0\.99\.$"
    ):
        METHODS[name](PARAMS, 0.99)
    with raises("allocation", "uniform"):
        METHODS[name](PARAMS, 0.5, allocation="uniform")
    with pytest.raises(ValueError, match=r"^`min_kept_per_layer` must be at most what the sparsity leaves: 6 of 54"):
        METHODS[name](PARAMS, 0.9, allocation=fj.global_(min_kept_per_layer=4))


@pytest.mark.parametrize("name", METHODS)
def test_wrong_parameters(name):
    method = METHODS[name]
    for prunable, said in ((None, "got None"), (fj.by_path("nothing"), "selects none of: 0/bias, 0/kernel")):
        with pytest.raises(ValueError, match=rf"^`prunable` must .*{said}"):
            method(PARAMS, 0.5, prunable=prunable)
    for params, said in (
        ({}, "at least one prunable parameter, got {}"),
        ([*PARAMS, "relu"], "arrays, got 'relu' at '2'"),
        ([*PARAMS, jax.ShapeDtypeStruct((2,), jnp.float32)], "arrays, got ShapeDtypeStruct.* at '2'"),
    ):
        with pytest.raises(ValueError, match=rf"^`params` must hold {said}"):
            method(params, 0.5)
    with pytest.raises(ValueError, match=r"^`params` must hold concrete arrays, got traced ones: call this outside of"):
        jax.jit(lambda params: method(params, 0.5))(PARAMS)
    with pytest.raises(ValueError, match=r"^`params` must give scores .* got 0 for all of them"):
        method(jax.tree.map(jnp.zeros_like, PARAMS), 0.5) if name != "random" else snip(
            loss_fn=lambda p, b: 0.0 * LOSS(p, b)
        )


def test_traced_batches():
    with pytest.raises(ValueError, match=r"^`batches` must hold concrete arrays, got traced ones"):
        jax.jit(lambda inputs: snip([(inputs, LABELS)]))(INPUTS)
    with pytest.raises(ValueError, match=r"^`inputs` must hold concrete arrays, got traced ones"):
        jax.jit(lambda inputs: fj.at_init.synflow(apply, PARAMS, inputs, 0.5))(INPUTS)


@pytest.mark.parametrize("iterations", [0, -1, 1.5, "2", None])
def test_wrong_iterations(raises, iterations):
    for name in ("snip", "force"):
        with raises("iterations", iterations):
            getattr(fj.at_init, name)(LOSS, PARAMS, BATCHES, 0.5, iterations=iterations)
    with raises("iterations", iterations):
        fj.at_init.synflow(apply, PARAMS, INPUTS, 0.5, iterations=iterations)


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, "2", True])
def test_wrong_temperatures(raises, temperature):
    with raises("temperature", temperature):
        fj.at_init.cross_entropy(apply, temperature)
    with raises("temperature", temperature):
        fj.at_init.grasp(LOSS, PARAMS, BATCHES, 0.5, temperature=temperature)


def test_wrong_arguments_of_synflow_and_random(raises):
    for value in (None, "apply"):
        with raises("apply", value):
            fj.at_init.synflow(value, PARAMS, INPUTS, 0.5)
        with raises("apply", value):
            fj.at_init.cross_entropy(value)
        with raises("inputs", value):
            fj.at_init.synflow(apply, PARAMS, value, 0.5)
    with pytest.raises(ValueError, match=re.escape("`inputs` must hold arrays where they are not floats")):
        fj.at_init.synflow(apply, PARAMS, jax.ShapeDtypeStruct((1, 4), jnp.int32), 0.5)
    with pytest.raises(ValueError, match=r"^`apply` must return floats, got \['bool'\]"):
        fj.at_init.synflow(lambda params, inputs: apply(params, inputs) > 0, PARAMS, INPUTS, 0.5)
    with raises("key", 3):
        fj.at_init.random(3, PARAMS, 0.5)
