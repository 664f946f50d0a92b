"""Lottery tickets: exact masks of each round, rewinding, resuming, and what a training must return."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj

K, T = 4, 12
X = jax.random.normal(jax.random.key(0), (32, 6))
Y = X @ jax.random.normal(jax.random.key(1), (6, 2))
PARAMS = {"dense": {"bias": jnp.zeros(2), "kernel": 0.3 * jax.random.normal(jax.random.key(2), (6, 2))}}
OPTIMIZER = fj.prune(optax.adam(optax.cosine_decay_schedule(0.1, T)), lambda step: 0.0)


def grads_of(params):
    return jax.grad(lambda p: jnp.mean((X @ p["dense"]["kernel"] + p["dense"]["bias"][None] - Y) ** 2))(params)


@jax.jit
def step(params, state):
    updates, state = OPTIMIZER.update(grads_of(params), state, params)
    return optax.apply_updates(params, updates), state


def run(params, state, steps):
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.fixture(scope="module")
def rewound():
    """The parameters and the state at step K of a dense training."""
    return run(PARAMS, OPTIMIZER.init(PARAMS), K)


@pytest.fixture(scope="module")
def train(rewound):
    params, state = rewound
    return lambda masks: run(fj.apply_masks(params, masks), fj.set_masks(state, masks), T - K)[0]


@pytest.fixture(scope="module")
def search(train):
    return list(fj.lottery.tickets(train, PARAMS, 0.75, rounds=3))


def fake(masks):
    """A training that ends at fixed weights, for the rest of what is said of it."""
    return fj.apply_masks(PARAMS, masks)


@pytest.mark.promotes
def test_each_round_is_that_of_a_numpy_loop(rewound):
    """Gradient descent in float64, and the lowest magnitudes of what is left by sorting."""
    x, y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    start = np.asarray(rewound[0]["dense"]["kernel"], np.float64)

    def train(masks):
        w, mask = start, np.asarray(masks["dense"]["kernel"])
        for _ in range(10):
            w = (w - 0.1 * 2 / y.size * x.T @ (x @ (w * mask) - y)) * mask
        return {"dense": {"bias": jnp.zeros(2), "kernel": jnp.asarray(w, jnp.float32)}}

    mask = np.ones((6, 2), bool)
    for number, ticket in enumerate(fj.lottery.tickets(train, PARAMS, 0.75, rounds=3)):
        if number:
            w = np.abs(np.asarray(train({"dense": {"kernel": mask}})["dense"]["kernel"])).ravel()
            kept = int(np.ceil(0.25 ** (number / 3) * 12 - 1e-9))
            # What is live comes first, then the highest.
            order = np.lexsort((-w, ~mask.ravel()))
            mask = np.zeros(12, bool)
            mask[order[:kept]] = True
            mask = mask.reshape(6, 2)
        assert ticket.round == number
        np.testing.assert_array_equal(ticket.masks["dense"]["kernel"], mask)
    assert number == 3


@pytest.mark.promotes
def test_rewound_with_all_weights_the_training_goes_on_bit_for_bit(train, assert_same):
    """Weights, moments, step count and learning rate: the dense round is the uninterrupted training."""
    everything = jax.tree.map(lambda w: jnp.ones(w.shape, bool) if w.ndim == 2 else optax.MaskedNode(), PARAMS)
    assert_same(train(everything), run(PARAMS, OPTIMIZER.init(PARAMS), T)[0])


@pytest.mark.promotes
def test_a_ticket_trains_from_the_rewound_weights_and_stays_sparse(search, train, rewound, assert_same):
    assert [ticket.round for ticket in search] == [0, 1, 2, 3]
    assert [fj.sparsity(ticket.params) for ticket in search] == [0, 4 / 12, 7 / 12, 9 / 12]
    for before, ticket in itertools.pairwise(search):
        assert not (ticket.masks["dense"]["kernel"] & ~before.masks["dense"]["kernel"]).any()
        # What stays is at least as large as what went, in the weights of the round before.
        trained, kept = np.abs(before.params["dense"]["kernel"]), np.asarray(ticket.masks["dense"]["kernel"])
        gone = np.asarray(before.masks["dense"]["kernel"]) & ~kept
        assert trained[kept].min() >= trained[gone].max()
        assert_same(ticket.params, train(ticket.masks))


@pytest.mark.promotes
@pytest.mark.parametrize("stopped", [0, 1, 3])
def test_a_search_goes_on_after_any_ticket_as_if_uninterrupted(search, train, stopped, assert_same):
    after = jax.tree.map(np.asarray, search[stopped])
    resumed = list(fj.lottery.tickets(train, PARAMS, 0.75, rounds=3, after=after))
    assert_same(resumed, search[stopped + 1 :])


def test_training_waits_until_the_ticket_is_asked_for():
    trained = []

    def train(masks):
        trained.append(masks)
        return fake(masks)

    tickets = fj.lottery.tickets(train, PARAMS, 0.5, rounds=2)
    assert len(trained) == 0
    next(tickets)
    assert len(trained) == 1


@pytest.mark.parametrize("size", [10, 100, 1001])
def test_counts_are_those_of_the_geometric_schedule(size):
    params = {"kernel": jax.random.normal(jax.random.key(0), (size, 1))}
    tickets = fj.lottery.tickets(lambda masks: fj.apply_masks(params, masks), params, 0.9, rounds=4)
    counts = [int(ticket.masks["kernel"].sum()) for ticket in tickets]
    assert counts == [size, *fj.schedules.geometric(0.9, begin=1, end=4, prunings=4).kept(size)]


def test_allocation_saliency_and_prunable_are_those_of_prune():
    params = {"a": {"kernel": jnp.arange(1.0, 9.0).reshape(4, 2)}, "b": {"kernel": jnp.ones((4, 2))}, "w": jnp.ones(3)}

    def last(**options):
        tickets = fj.lottery.tickets(lambda masks: fj.apply_masks(params, masks), params, 0.5, rounds=1, **options)
        return [int(mask.sum()) for mask in jax.tree.leaves(list(tickets)[-1].masks)]

    assert last() == [8, 0]
    assert last(allocation=fj.uniform()) == [4, 4]
    assert last(prunable=fj.by_path("b/kernel")) == [4]
    assert sum(last(saliency=fj.random(jax.random.key(0)))) == 8


def test_parameters_of_nnx():
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    *_, last = fj.lottery.tickets(lambda masks: fj.apply_masks(params, masks), params, 0.5, rounds=2)
    assert fj.sparsity(last.params) == 0.5
    optimizer = fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=last.masks)
    fj.check(last.params, optimizer.init(params))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", 0),
        ("rounds", 1.5),
        ("sparsity", 1.0),
        ("saliency", None),
        ("allocation", "global"),
        ("prunable", None),
    ],
)
def test_wrong_arguments_are_told_before_any_training(name, value, raises):
    def train(masks):
        pytest.fail("No training was asked for.")

    with raises(name, value):
        fj.lottery.tickets(train, PARAMS, **{"sparsity": 0.5, "rounds": 2, name: value})


def test_more_wrong_arguments(raises):
    with raises("train", 3):
        fj.lottery.tickets(3, PARAMS, 0.5, rounds=1)
    with pytest.raises(ValueError, match=r"^`saliency` must judge by the trained weights alone, .* got Saliency"):
        fj.lottery.tickets(fake, PARAMS, 0.5, rounds=1, saliency=fj.flips())
    # What it looks at beside the weights may be given.
    norms = {
        fj.path_string(path): np.ones(w.shape[-2], np.float32)
        for path, w in jax.tree.leaves_with_path(PARAMS)
        if fj.kernels(path, w)
    }
    fj.lottery.tickets(fake, PARAMS, 0.5, rounds=1, saliency=fj.wanda(norms))
    with pytest.raises(ValueError, match=r"^`prunable` must select at least one parameter"):
        fj.lottery.tickets(fake, {"bias": jnp.ones(3)}, 0.5, rounds=1)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (lambda ticket: (0, ticket.masks, ticket.params), r"`after` must be a Ticket of an earlier search, got \(0"),
        (lambda ticket: ticket._replace(round=3), "`after.round` must be at most `rounds`, which is 2, got 3"),
        (lambda ticket: ticket._replace(round=-1), "`after.round` must be an integer of at least 0, got -1"),
        (
            lambda ticket: ticket._replace(masks={}),
            "`after.masks` must have the structure of the parameters, got 'noth",
        ),
        (lambda ticket: ticket._replace(params={}), "`after.params` must hold parameters like `params`, got nothing"),
    ],
)
def test_what_is_no_ticket_of_this_search(after, said):
    ticket = next(fj.lottery.tickets(fake, PARAMS, 0.5, rounds=2))
    with pytest.raises(ValueError, match=f"^{said}"):
        fj.lottery.tickets(fake, PARAMS, 0.5, rounds=2, after=after(ticket))


@pytest.mark.makes_nan
@pytest.mark.parametrize(
    ("train", "said"),
    [
        (lambda masks: {}, "parameters like `params`, got nothing in round 0 where `params` has 'dense/bias' of shape"),
        (
            lambda masks: {"dense": {"bias": jnp.zeros(2), "kernel": jnp.ones((2, 6))}},
            r"parameters like `params`, got 'dense/kernel' of shape \(2, 6\) .* has 'dense/kernel' of shape \(6, 2\)",
        ),
        (
            lambda masks: jax.tree.map(lambda w: w / 0, fake(masks)),
            "finite weights, got NaN or infinity in 'dense/kernel' in round 0",
        ),
        (
            lambda masks: PARAMS,
            "0 where the masks are False, got 6 weights of 'dense/kernel' .* in round 1: start from",
        ),
    ],
)
def test_what_a_training_must_return(train, said):
    with pytest.raises(ValueError, match=f"^`train` must return {said}"):
        list(fj.lottery.tickets(train, PARAMS, 0.5, rounds=1))


@pytest.mark.promotes
def test_a_loop_of_ones_own_finds_the_same_tickets(search, assert_same):
    dense, *sparse = search
    masks, trained = dense.masks, dense.params
    for ticket in sparse:
        masks = fj.lottery.next_masks(masks, trained, 0.75, round=ticket.round, rounds=3)
        assert_same(masks, ticket.masks)
        trained = ticket.params


@pytest.mark.parametrize(("name", "value"), [("round", 0), ("round", 4), ("rounds", 0), ("sparsity", 1.5)])
def test_the_next_masks_need_a_round_of_the_search(raises, name, value):
    masks = {"kernel": jnp.ones((1, 4), bool)}
    options = {"sparsity": 0.75, "round": 1, "rounds": 3, name: value}
    with raises(name, value):
        fj.lottery.next_masks(masks, {"kernel": jnp.ones((1, 4))}, **options)
