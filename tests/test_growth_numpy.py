"""RigL, SET and GraNet against a NumPy transcription of their rules, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

STEPS, EVERY, UNTIL = 300, 20, 240
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = np.float32(0.1), np.float32(0.9), np.float32(5e-4)
SHAPES = {
    "conv": {"bias": (4,), "kernel": (3, 3, 2, 4)},
    "dense_0": {"bias": (16,), "kernel": (12, 16)},
    "dense_1": {"bias": (10,), "kernel": (16, 10)},
    "dense_2": {"kernel": (3, 2)},
    "norm": {"scale": (12,)},
}
PATHS = [f"{layer}/{name}" for layer, arrays in SHAPES.items() for name in arrays]
KERNELS = [path for path in PATHS if path.endswith("kernel")]
SIZE = 72 + 192 + 160 + 6


def make_run(seed):
    """Weights, and gradients that push each weight to and fro, each as far as its amplitude."""
    rng = np.random.default_rng(seed)

    def draw(*lead):
        return {
            layer: {name: rng.standard_normal((*lead, *shape)).astype(np.float32) for name, shape in arrays.items()}
            for layer, arrays in SHAPES.items()
        }

    params = jax.tree.map(lambda w: np.float32(0.1) * w, draw())
    amplitude = jax.tree.map(lambda x: np.float32(0.03) * np.exp(np.float32(0.7) * x), draw())
    grads = jax.tree.map(lambda a, x: a * np.diff(x, axis=0), amplitude, draw(STEPS + 1))
    return params, grads


def flat(tree):
    return {path: tree[path.split("/")[0]][path.split("/")[1]] for path in PATHS}


class Reference:
    """SGD in float32 with weights that are exchanged, on dicts of path -> array.

    It follows the authors' code: `number` gives how many of some weights are exchanged after a number of updates,
    `target` how many of all weights are kept after an update that prunes, and the exchange replaces an update or not.
    """

    def __init__(self, params, masks, number, first, until, replaces, target=None, nesterov=False):
        self.weights = {path: np.array(w) for path, w in flat(params).items()}
        self.masks = {path: np.array(flat(masks)[path]) for path in KERNELS}
        for path in KERNELS:
            self.weights[path][~self.masks[path]] = 0
        self.momentum = {path: np.zeros_like(w) for path, w in self.weights.items()}
        self.number, self.first, self.until, self.replaces = number, first, until, replaces
        self.target, self.nesterov = target, nesterov
        self.count = 0
        # How often a weight came back whose mask was False, and how often one at once.
        self.fresh = self.regrown = 0
        # The smallest distance by which any ranking was decided, as a part of the value.
        self.margin = np.inf

    def step(self, grads):
        grads = flat(grads)
        update = self.count + 1
        exchanges = update >= self.first and (update - self.first) % EVERY == 0 and update <= self.until
        if not (exchanges and self.replaces):
            for path, g in grads.items():
                self.descend(path, g)
        if self.target is not None and self.target(update) is not None:
            self.prune(self.target(update))
        if exchanges:
            for path in KERNELS:
                self.exchange(path, grads[path])
        self.count = update

    def descend(self, path, g):
        if path in self.masks:
            g = np.where(self.masks[path], g, np.float32(0))
        g = g + WEIGHT_DECAY * self.weights[path]
        self.momentum[path] = MOMENTUM * self.momentum[path] + g
        direction = g + MOMENTUM * self.momentum[path] if self.nesterov else self.momentum[path]
        self.weights[path] = self.weights[path] - LEARNING_RATE * direction
        if path in self.masks:
            self.weights[path] = np.where(self.masks[path], self.weights[path], np.float32(0))
        assert self.weights[path].dtype == np.float32

    def prune(self, keep):
        live = np.concatenate([self.masks[path].ravel() for path in KERNELS])
        scores = np.concatenate([np.abs(self.weights[path]).ravel() for path in KERNELS])
        kept = self.top(np.where(live, scores, np.float32(-1)), keep)
        bounds = np.cumsum([self.masks[path].size for path in KERNELS])[:-1]
        for path, mask in zip(KERNELS, np.split(kept, bounds), strict=True):
            self.masks[path] = mask.reshape(self.masks[path].shape)
            self.weights[path] = np.where(self.masks[path], self.weights[path], np.float32(0))

    def exchange(self, path, g):
        before = self.masks[path].ravel()
        number = self.number(int(before.sum()), self.count)
        score = np.where(before, np.abs(self.weights[path]).ravel(), np.float32(-1))
        kept = self.top(score, int(before.sum()) - number)
        grown = self.top(np.where(kept, np.float32(-1), np.abs(g).ravel()), number)
        fresh = (grown & ~before).reshape(g.shape)
        self.masks[path] = (kept | grown).reshape(g.shape)
        self.weights[path] = np.where(self.masks[path] & ~fresh, self.weights[path], np.float32(0))
        self.momentum[path] = np.where(fresh, np.float32(0), self.momentum[path])
        self.fresh += int(fresh.sum())
        self.regrown += int((grown & before).sum())

    def top(self, score, number):
        order = np.argsort(-score, kind="stable")
        if 0 < number < len(score):
            last, next_ = score[order[number - 1]], score[order[number]]
            self.margin = min(self.margin, float((last - next_) / last))
        chosen = np.zeros(len(score), bool)
        chosen[order[:number]] = True
        return chosen


def follow(reference, params, grads, seen, states):
    """Compares every step of a library run with the reference."""
    masks, seen, momentum = jax.device_get((states.masks, seen, optax.tree.get(states.inner_state, "trace")))
    masks, seen, momentum = flat(masks), flat(seen), flat(momentum)
    for i in range(STEPS):
        reference.step(jax.tree.map(lambda g, i=i: g[i], grads))
        for path in PATHS:
            where = f"{path} after update {i + 1}"
            np.testing.assert_allclose(seen[path][i], reference.weights[path], rtol=0, atol=2e-6, err_msg=where)
            np.testing.assert_allclose(momentum[path][i], reference.momentum[path], rtol=0, atol=4e-6, err_msg=where)
            if path in KERNELS:
                np.testing.assert_array_equal(masks[path][i], reference.masks[path], err_msg=where)
                assert (seen[path][i][~reference.masks[path]] == 0).all(), where
    # Otherwise a compiler that rounds elsewhere could decide the test: choose another seed.
    assert reference.margin > 2e-5, reference.margin
    # The run exercises both kinds of growth.
    assert reference.fresh > 50
    assert reference.regrown > 5


def rounded(round_, fraction):
    """How many of some weights are exchanged: a float32 product, rounded, which must not be near another result."""

    def number(live, count):
        exact = live * fraction(count)
        near_by = [int(round_(np.float32(exact * scale))) for scale in (1 - 1e-5, 1, 1 + 1e-5)]
        assert len(set(near_by)) == 1, (live, count)
        return near_by[1]

    return number


def sgd(nesterov=False):
    return optax.chain(
        optax.add_decayed_weights(float(WEIGHT_DECAY)),
        optax.sgd(float(LEARNING_RATE), momentum=float(MOMENTUM), nesterov=nesterov),
    )


def erk_masks(params, sparsity):
    return fj.at_init.random(jax.random.key(3), params, sparsity, allocation=fj.erk())


# The schedules of optax divide integers.
@pytest.mark.promotes
@pytest.mark.parametrize("first", [1, EVERY])
def test_rigl_follows_the_transcription(train, first):
    params, grads = make_run(1)
    params = jax.tree.map(jnp.asarray, params)
    masks = erk_masks(params, 0.7)
    assert bool(masks["dense_2"]["kernel"].all())
    growth = fj.growth.gradient(optax.cosine_decay_schedule(0.3, UNTIL), every=EVERY, until=UNTIL, begin=first)
    optimizer = fj.prune(sgd(), fj.schedules.constant(0.7), growth=growth, initial_masks=masks)
    seen, states = train(optimizer, fj.apply_masks(params, masks), grads)
    number = rounded(np.floor, lambda count: 0.3 * 0.5 * (1 + np.cos(np.pi * min(count, UNTIL) / UNTIL)))
    reference = Reference(params, masks, number, first, UNTIL, replaces=True)
    follow(reference, params, grads, seen, states)
    kept = sum(mask.sum(axis=tuple(range(1, mask.ndim))) for mask in jax.tree.leaves(states.masks))
    # Of 430 weights.
    assert set(kept.tolist()) == {129}


def cubic(i, prunings, start, end):
    return start + (end - start) * (1 - (1 - i / prunings) ** 3)


@pytest.mark.parametrize(("start", "nesterov"), [(0.0, True), (0.5, False)], ids=["granet", "granet_st"])
def test_granet_follows_the_transcription(train, start, nesterov):
    params, grads = make_run(2)
    params = jax.tree.map(jnp.asarray, params)
    masks = erk_masks(params, start)
    last, prunings = 160, 160 // EVERY
    optimizer = fj.granet(
        sgd(nesterov),
        0.9,
        steps=STEPS,
        every=EVERY,
        end=last,
        initial_sparsity=start,
        initial_masks=masks if start else None,
    )
    seen, states = train(optimizer, fj.apply_masks(params, masks), grads)

    def target(update):
        if update % EVERY or update > last:
            return None
        return int(np.ceil((1 - cubic(update // EVERY, prunings, start, 0.9)) * SIZE - 1e-9))

    fraction = rounded(np.ceil, lambda count: 0.005 + 0.495 * 0.5 * (1 + np.cos(np.pi * (count + 1) / STEPS)))
    reference = Reference(params, masks, fraction, EVERY, STEPS, False, target, nesterov)
    follow(reference, params, grads, seen, states)
    assert sum(int(mask[-1].sum()) for mask in jax.tree.leaves(states.masks)) == 43


@pytest.mark.promotes
def test_granet_is_made_of_a_cubic_schedule_and_growth_by_gradients(train, assert_same):
    params, grads = make_run(2)
    params = jax.tree.map(jnp.asarray, params)
    ramp = fj.schedules.Milestones(
        (20, 40), fj.schedules.cubic(0.9, begin=1, end=3, prunings=3, initial_sparsity=0.0).densities[1:]
    )
    fraction = optax.schedules.cosine_decay_schedule(0.5, 60, alpha=0.01)
    growth = fj.growth.gradient(lambda count: fraction(count + 1), every=EVERY, replaces_update=False, rounds_up=True)
    ours = fj.prune(sgd(), ramp, growth=growth)
    grads = jax.tree.map(lambda g: g[:60], grads)
    granet = fj.granet(sgd(), 0.9, steps=60, every=EVERY, end=40)
    assert_same(train(ours, params, grads)[1].masks, train(granet, params, grads)[1].masks)
