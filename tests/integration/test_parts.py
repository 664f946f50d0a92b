"""Pruning parts of a tree: what `optax.partition`, `optax.masked` and `optax.selective_transform` hand out, merged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj
from flipout_jax import _holes

HOLE = optax.MaskedNode()
SHAPES = {"first": {"bias": (3,), "kernel": (6, 3)}, "last": {"kernel": (5, 4)}, "middle": {"kernel": (4, 4)}}
STEPS = 3


WIDE = {"first": {"bias": (3,), "kernel": (6, 3)}, "last": {"bias": (4,), "kernel": (5, 4), "scale": (2,)}}


def draw(seed, lead=(), shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal((*lead, *shape)), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS = draw(0)
GRADS = draw(1, (STEPS,))


def last(seen):
    return jax.tree.map(lambda x: x[-1], seen)


def labels(**names):
    """The label of each parameter by the name of its layer."""
    return {layer: jax.tree.map(lambda _, layer=layer: names[layer], tree) for layer, tree in PARAMS.items()}


@pytest.fixture
def partitioned(halving):
    """A half of `first`, a tenth of `middle`, and all of `last`, which does not train."""
    parts = {
        "half": halving(optax.sgd(0.1)),
        "tenth": fj.flipout(optax.adam(0.1), lambda step: 0.9, key=jax.random.key(3)),
        "frozen": optax.set_to_zero(),
    }
    return optax.partition(parts, labels(first="half", middle="tenth", last="frozen"))


@pytest.mark.promotes
def test_the_masks_of_a_partition_are_one_tree(partitioned, train, tmp_path, assert_same):
    params, state = last(train(partitioned, PARAMS, GRADS))
    masks = fj.get_masks(state)
    assert _holes.structure(masks) == jax.tree.structure(PARAMS)
    assert masks["first"]["bias"] == masks["last"]["kernel"] == HOLE
    assert [int(mask.sum()) for mask in jax.tree.leaves(masks)] == [9, 2]
    fj.check(params, state)
    assert_same(params["last"], PARAMS["last"])
    table = fj.summary(params, state)
    assert [(row.path, row.prunable, row.kept) for row in table.rows] == [
        ("first/bias", 0, 0),
        ("first/kernel", 18, 9),
        ("last/kernel", 0, 0),
        ("middle/kernel", 16, 2),
    ]
    assert table.total.kept == 11
    # Those of the part that counts them, or of both.
    assert table.rows[3].flips is not None
    assert table.not_reached == ()
    assert_same(fj.apply_masks(params, masks), params)
    fj.save_sparse(tmp_path / "network", params, masks)
    assert_same(fj.load_sparse(tmp_path / "network", params), (params, masks))
    broken = {**params, "middle": {"kernel": params["middle"]["kernel"] + 1}}
    with pytest.raises(ValueError, match=r"^`params` must be zero where masked.*'middle/kernel'"):
        fj.check(broken, state)


@pytest.mark.promotes
def test_each_part_trains_as_it_would_alone(halving, train, assert_same):
    parts = {"a": halving(optax.sgd(0.1)), "b": fj.prune(optax.adam(0.1), lambda step: 0.75)}
    whole, state = train(optax.partition(parts, labels(first="a", middle="b", last="b")), PARAMS, GRADS)
    masks = fj.get_masks(state)
    for part, layers in (("a", ["first"]), ("b", ["last", "middle"])):
        params, alone = train(parts[part], *({name: tree[name] for name in layers} for tree in (PARAMS, GRADS)))
        assert_same(fj.get_masks(alone), {name: masks[name] for name in layers})
        for name in layers:
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), params[name], whole[name])


@pytest.mark.promotes
def test_masks_of_a_partition_are_set_in_all_parts(partitioned, assert_same):
    state = partitioned.init(PARAMS)
    masks = fj.get_masks(state)
    masks["first"]["kernel"] = jnp.arange(18).reshape(6, 3) < 6
    masks["middle"]["kernel"] = jnp.arange(16).reshape(4, 4) < 4
    changed = fj.set_masks(state, masks)
    assert_same(fj.get_masks(changed), masks)
    assert jax.tree.structure(changed) == jax.tree.structure(state)
    updates, after = partitioned.update(last(GRADS), changed, PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    fj.check(params, after)
    assert not (fj.get_masks(after)["first"]["kernel"] & ~masks["first"]["kernel"]).any()
    with pytest.raises(ValueError, match=r"^`masks` must hold optax\.MaskedNode\(\) for 'last/kernel'"):
        fj.set_masks(state, {**masks, "last": {"kernel": jnp.ones((5, 4), bool)}})
    with pytest.raises(ValueError, match=r"^`masks` must hold bool\[4, 4\] for 'middle/kernel', which is prunable"):
        fj.set_masks(state, {**masks, "middle": {"kernel": HOLE}})


def test_targets_of_all_parts_are_told(partitioned):
    with pytest.warns(fj.TargetNotReachedWarning) as caught:
        fj.check(PARAMS, partitioned.init(PARAMS))
    assert sorted(caught[0].message.problems) == ["target 50 %, reached 0 %", "target 90 %, reached 0 %"]


ONLY_FIRST = {
    "a tree": lambda tx: optax.masked(tx, jax.tree.map(lambda x: x == "yes", labels(first="yes", last="", middle=""))),
    "a prefix": lambda tx: optax.masked(tx, {"first": True, "last": False, "middle": False}),
    "a function": lambda tx: optax.masked(tx, lambda tree: {name: name == "first" for name in tree}),
    "selective": lambda tx: optax.selective_transform(
        tx, freeze_mask=jax.tree.map(lambda x: x != "yes", labels(first="yes", last="", middle=""))
    ),
}
if not hasattr(optax, "selective_transform"):
    # It is not in the oldest release.
    del ONLY_FIRST["selective"]


@pytest.mark.promotes
@pytest.mark.parametrize("wrap", ONLY_FIRST.values(), ids=ONLY_FIRST)
def test_pruning_of_a_part_alone(wrap, halving, train, tmp_path, assert_same):
    params, state = last(train(wrap(halving(optax.sgd(0.1))), PARAMS, GRADS))
    masks = fj.get_masks(state)
    assert [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(masks)] == ["first/kernel"]
    assert int(masks["first"]["kernel"].sum()) == 9
    fj.check(params, state)
    table = fj.summary(params, state)
    assert [row.kept for row in table.rows] == [0, 9, 0, 0]
    assert table.parameters == 3 + 18 + 20 + 16
    fj.save_sparse(tmp_path / "network", params, masks)
    loaded = fj.load_sparse(tmp_path / "network", params)[1]
    assert [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(loaded)] == ["first/kernel"]
    changed = fj.set_masks(state, {**masks, "first": {"bias": HOLE, "kernel": jnp.zeros((6, 3), bool)}})
    assert not fj.get_masks(changed)["first"]["kernel"].any()
    assert_same(fj.apply_masks(params, masks), params)


def test_masks_of_the_whole_tree_start_a_part(halving, train):
    """What `get_masks` gives is what `initial_masks` takes, whatever is around it."""
    wrapped = optax.masked(halving(optax.sgd(0.1)), {"first": True, "last": False, "middle": False})
    params, state = last(train(wrapped, PARAMS, GRADS))
    optimizer = fj.prune(
        optax.sgd(0.1), lambda step: 0.0, prunable=fj.by_path("first/k"), initial_masks=fj.get_masks(state)
    )
    fj.check(params, optimizer.init(params))


@pytest.mark.promotes
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, {"first": True, "last": False}),
        lambda tx: optax.masked(tx, {"first": {"bias": False, "kernel": True}, "last": False}),
        lambda tx: optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"first": "a", "last": "b"}),
        lambda tx: optax.partition(
            {"a": tx, "b": fj.prune(optax.sgd(0.1), lambda step: 0.5)}, {"first": "a", "last": "b"}
        ),
    ],
    ids=["masked", "masked within", "partition", "two parts"],
)
def test_a_hole_may_stand_for_many_parameters(wrap, halving, train, tmp_path, assert_same):
    """As optax leaves one where its labels are a prefix of the parameters."""
    start = draw(0, shapes=WIDE)
    params, state = last(train(wrap(halving(optax.sgd(0.1))), start, draw(1, (STEPS,), WIDE)))
    masks = fj.get_masks(state)
    fj.check(params, state)
    assert_same(fj.apply_masks(params, masks), params)
    table = fj.summary(params, state)
    assert [row.path for row in table.rows] == ["first/bias", "first/kernel", "last/bias", "last/kernel", "last/scale"]
    assert table.rows[1].kept == 9
    assert table.parameters == 3 + 18 + 4 + 20 + 2
    fj.save_sparse(tmp_path / "network", params, masks)
    assert_same(fj.load_sparse(tmp_path / "network", params)[0], params)
    changed = fj.set_masks(state, jax.tree.map(jnp.zeros_like, masks))
    assert jax.tree.structure(changed) == jax.tree.structure(state)
    assert not any(mask.any() for mask in jax.tree.leaves(fj.get_masks(changed)))
    assert_same(fj.get_masks(fj.set_masks(changed, masks)), masks)
    # Whole masks start what is around a part.
    again = wrap(fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks={"first": masks["first"], "last": HOLE}))
    assert_same(fj.get_masks(again.init(params))["first"], masks["first"])


def test_one_parameter_in_two_parts_is_told(halving):
    optimizer = optax.chain(
        optax.masked(halving(optax.sgd(0.1)), {"first": True, "last": True, "middle": False}),
        optax.masked(fj.prune(optax.sgd(0.1), lambda step: 0.5), {"first": False, "last": True, "middle": True}),
    )
    state = optimizer.init(PARAMS)
    for look in (
        fj.get_masks,
        lambda state: fj.summary(PARAMS, state),
        lambda state: fj.check(PARAMS, state),
        lambda state: fj.set_masks(state, {}),
    ):
        with pytest.raises(
            ValueError, match=r"^`opt_state` must prune .* in one place, got two masks of 'last/kernel'"
        ):
            look(state)


@pytest.mark.promotes
def test_parts_deep_in_other_wrappers(halving, train):
    parts = {"a": halving(optax.sgd(0.1)), "b": fj.prune(optax.sgd(0.1), lambda step: 0.75), "c": optax.sgd(0.1)}
    inside = optax.chain(optax.clip(1.0), optax.partition(parts, labels(first="a", middle="b", last="c")))
    params, state = last(train(optax.apply_if_finite(optax.MultiSteps(inside, 1), 3), PARAMS, GRADS))
    assert [int(mask.sum()) for mask in jax.tree.leaves(fj.get_masks(state))] == [9, 4]
    fj.check(params, state)


@pytest.mark.promotes
def test_parts_of_an_nnx_model(halving):
    model = nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 2, rngs=nnx.Rngs(1)))

    def label(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "a" if "/0/" in f"/{fj.path_string(path)}" else "b",
            params,
            is_leaf=lambda x: isinstance(x, nnx.Variable),
        )

    parts = {"a": halving(optax.sgd(0.1)), "b": fj.prune(optax.sgd(0.1), lambda step: 0.75)}
    optimizer = nnx.Optimizer(model, optax.partition(parts, label), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    assert [int(mask.sum()) for mask in jax.tree.leaves(fj.get_masks(optimizer))] == [12, 3]
    fj.check(model, optimizer)
    table = fj.summary(model, optimizer)
    assert (table.total.kept, table.parameters) == (15, 24 + 6 + 12 + 2)
