"""Primitives that move, repeat, cut, join or sum positions."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from ._program import Step
from ._units import FIXED, FREE, Units, fixed, free
from ._values import Known, Term, collapse, evaluate, spread, unknown

Rule = Callable[[Units, Step, list[Term], tuple[int, ...], Any], Term]


def transpose(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Axes in another order."""
    del units, shape, dtype
    order, (term,) = step.options["permutation"], terms
    known = Known(*(array.transpose(order) for array in term.known))
    return Term(tuple(term.ids[axis] for axis in order), known)


def broadcast(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Copies along new axes."""
    del dtype
    places, term = step.options["broadcast_dimensions"], terms[0]
    ids, sizes = [free(n) for n in shape], [1] * len(shape)
    for own, place, size in zip(term.ids, places, term.known.value.shape, strict=True):
        if len(own) == shape[place]:
            ids[place], sizes[place] = own, size
        else:
            units.pin(own, "used by broadcast_in_dim")
    return Term(tuple(ids), Known(*(array.reshape(sizes) for array in term.known)))


def reshape(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Axes that stay, and axes that become one; units of axes that are cut up stay."""
    term = terms[0]
    ids: list[np.ndarray] = [free(n) for n in shape]
    old_axes, new_axes = ([i for i, n in enumerate(s) if n != 1] for s in (term.shape, shape))
    spreads: set[int] = set()
    _keep_single(units, term, shape, ids)
    while old_axes or new_axes:
        old, new = _block(old_axes, new_axes, term.shape, shape)
        if len(old) == len(new) == 1:
            ids[new[0]] = term.ids[old[0]]
            continue
        if len(new) == 1:
            ids[new[0]] = _merge(units, [term.ids[i] for i in old])
        else:
            for axis in old:
                units.pin(term.ids[axis], "used by reshape")
            for axis in new:
                ids[axis] = fixed(shape[axis])
        if any(term.known.value.shape[i] > 1 for i in old):
            spreads.update(old)
    known = spread(term.known, term.shape, spreads)
    # An axis of length 1 goes, or is put in, without a move of the others.
    kept = [n for i, n in enumerate(known.value.shape) if term.shape[i] != 1]
    return Term(tuple(ids), collapse(_reshaped(known, kept, term.shape, shape, spreads)))


def _reshaped(known: Known, sizes: list[int], old: tuple[int, ...], new: tuple[int, ...], spreads: set[int]) -> Known:
    """The constants in the new axes, of which those that are the same along the old ones have length 1."""
    old_axes, new_axes = ([i for i, n in enumerate(s) if n != 1] for s in (old, new))
    by_axis = dict(zip(old_axes, sizes, strict=True))
    target = [1] * len(new)
    while old_axes or new_axes:
        left, right = _block(old_axes, new_axes, old, new)
        if len(left) == len(right) == 1:
            target[right[0]] = by_axis[left[0]]
        elif spreads.intersection(left):
            for axis in right:
                target[axis] = new[axis]
    return Known(*(array.reshape(target) for array in known))


def _block(
    old_axes: list[int], new_axes: list[int], old: tuple[int, ...], new: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """The next axes on both sides that hold as many positions; taken off the lists."""
    left, right = [old_axes.pop(0)], [new_axes.pop(0)]
    while (a := math.prod(old[i] for i in left)) != (b := math.prod(new[i] for i in right)):
        if a < b:
            left.append(old_axes.pop(0))
        else:
            right.append(new_axes.pop(0))
    return left, right


def _keep_single(units: Units, term: Term, shape: tuple[int, ...], ids: list[np.ndarray]) -> None:
    """Finds the units of axes of length 1 again, at the same place from the end, or pins them."""
    for axis, own in enumerate(term.ids):
        place = axis - len(term.ids) + len(shape)
        if len(own) == 1 and 0 <= place < len(shape) and shape[place] == 1:
            ids[place] = own
        elif len(own) == 1:
            units.pin(own, "used by reshape")


def _merge(units: Units, parts: list[np.ndarray]) -> np.ndarray:
    """The units of axes that become one: those of the last that has any, the others stay."""
    chosen = max((i for i, ids in enumerate(parts) if not units.is_pinned(ids)), default=len(parts) - 1)
    for i, ids in enumerate(parts):
        if i != chosen:
            units.pin(ids, "used by reshape")
    lengths = [len(ids) for ids in parts]
    own = parts[chosen].reshape([-1 if i == chosen else 1 for i in range(len(parts))])
    return np.broadcast_to(own, lengths).reshape(-1)


def squeeze(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Axes of length 1 that go."""
    del shape, dtype
    term, gone = terms[0], step.options["dimensions"]
    for axis in gone:
        units.pin(term.ids[axis], "used by squeeze")
    known = Known(*(array.squeeze(tuple(gone)) for array in term.known))
    return Term(tuple(ids for i, ids in enumerate(term.ids) if i not in gone), known)


def cut(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """A part of some axes; the units of those stay, since the code says where it starts and ends."""
    del dtype
    term = terms[0]
    starts, ends = step.options["start_indices"], step.options["limit_indices"]
    strides = step.options["strides"] or (1,) * len(shape)
    ids, parts = [], []
    for axis, (own, start, end, stride) in enumerate(zip(term.ids, starts, ends, strides, strict=True)):
        is_all = (start, end, stride) == (0, len(own), 1)
        if not is_all:
            units.pin(own, "used by slice")
        ids.append(own if is_all else np.where(own[start:end:stride] >= 0, FIXED, own[start:end:stride]))
        parts.append(slice(None) if is_all or term.known.value.shape[axis] == 1 else slice(start, end, stride))
    return Term(tuple(ids), collapse(Known(*(array[tuple(parts)] for array in term.known))))


def join(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Arrays side by side."""
    del dtype
    axis = step.options["dimension"]
    ids = [free(n) for n in shape]
    for term in terms:
        for i, own in enumerate(term.ids):
            if i != axis:
                ids[i] = units.tie(ids[i], own)
    ids[axis] = np.concatenate([np.where(term.ids[axis] == FREE, FIXED, term.ids[axis]) for term in terms])
    knowns = [spread(term.known, term.shape, {axis}) for term in terms]
    others = np.broadcast_shapes(*(_without(known.value.shape, axis) for known in knowns))
    knowns = [spread(known, others, set(range(len(shape))) - {axis}) for known in knowns]
    joined = (np.concatenate([known[i] for known in knowns], axis) for i in range(2))
    return Term(tuple(ids), collapse(Known(*joined)))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def pad(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """A border around an array."""
    del dtype
    term, border = terms
    config = step.options["padding_config"]
    padded = {axis for axis, widths in enumerate(config) if any(widths)}
    for axis in padded:
        units.pin(term.ids[axis], "used by pad")
    ids = tuple(fixed(n) if axis in padded else term.ids[axis] for axis, n in enumerate(shape))
    known = spread(term.known, term.shape, padded)
    config = [(int(low), int(high), int(gap)) for low, high, gap in config]
    value, mask = (
        np.asarray(lax.pad(jax.numpy.asarray(a), jax.numpy.asarray(b.reshape(())), config))
        for a, b in zip(known, border.known, strict=True)
    )
    return Term(ids, collapse(Known(value, mask)))


def reduce(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """A sum or an extreme over axes, whose units stay."""
    term, axes = terms[0], {int(axis) for axis in step.options["axes"]}
    for axis in axes:
        units.pin(term.ids[axis], f"used by {step.primitive.name}")
    ids = tuple(own for axis, own in enumerate(term.ids) if axis not in axes)
    mask = np.asarray(term.known.known.all(tuple(axes)))
    if not mask.any():
        return Term(ids, unknown(len(shape), dtype))
    known = spread(term.known, term.shape, axes)
    value = evaluate(step.primitive, step.options, np.where(known.known, known.value, np.zeros((), dtype)))
    return Term(ids, collapse(Known(value, mask)))


def window(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """A sum or an extreme over a window that slides along some axes, whose units stay."""
    term, options = terms[0], step.options
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    sizes, strides, padding, dilation, window_dilation = (tuple(options[name]) for name in names)
    moves = {
        axis
        for axis, (size, stride, width, gap) in enumerate(zip(sizes, strides, padding, dilation, strict=True))
        if size > 1 or stride > 1 or any(width) or gap > 1
    }
    for axis in moves:
        units.pin(term.ids[axis], f"used by {step.primitive.name}")
    ids = tuple(fixed(n) if axis in moves else term.ids[axis] for axis, n in enumerate(shape))
    if not term.known.known.any():
        return Term(ids, unknown(len(shape), dtype))
    known = spread(term.known, term.shape, moves)
    value = evaluate(step.primitive, options, np.where(known.known, known.value, np.zeros((), dtype)))
    doubts = lax.reduce_window(
        (~known.known).astype(np.float32), np.float32(0), lax.add, sizes, strides, padding, dilation, window_dilation
    )
    return Term(ids, collapse(Known(value, np.asarray(doubts) == 0)))


RULES: dict[str, Rule] = {
    "broadcast_in_dim": broadcast,
    "concatenate": join,
    "pad": pad,
    "reshape": reshape,
    "slice": cut,
    "squeeze": squeeze,
    "transpose": transpose,
    **{f"reduce_{name}": reduce for name in ("sum", "max", "min", "prod", "and", "or")},
    **{f"reduce_window_{name}": window for name in ("sum", "max", "min")},
}
