"""Primitives that move, repeat, slice, join or reduce positions."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ._program import Step
from ._units import FIXED, FREE, Units, fixed, free
from ._values import Known, Term, collapse, evaluate, spread, unknown

Rule = Callable[[Units, Step, list[Term], tuple[int, ...], Any], Term]


def transpose(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Puts axes in another order."""
    del units, shape, dtype
    (term,) = terms
    order = step.options["permutation"]
    known = Known(*(array.transpose(order) for array in term.known))
    return Term(tuple(term.ids[axis] for axis in order), known)


def broadcast(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Repeats an array along new axes."""
    del dtype
    (term,) = terms
    ids = [free(size) for size in shape]
    sizes = [1] * len(shape)
    new_axes = step.options["broadcast_dimensions"]
    for axis_ids, new_axis, size in zip(term.ids, new_axes, term.known.value.shape, strict=True):
        if len(axis_ids) == shape[new_axis]:
            ids[new_axis] = axis_ids
            sizes[new_axis] = size
        else:
            units.pin(axis_ids, "used by broadcast_in_dim")
    return Term(tuple(ids), Known(*(array.reshape(sizes) for array in term.known)))


def reshape(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Keeps axes, merges or splits them. The units of axes that are split are kept."""
    del step, dtype
    (term,) = terms
    ids = [free(size) for size in shape]
    split: set[int] = set()
    _match_single_positions(units, term, shape, ids)
    blocks = _blocks(term.shape, shape)
    for old, new in blocks:
        if len(old) == len(new) == 1:
            ids[new[0]] = term.ids[old[0]]
            continue
        if len(new) == 1:
            ids[new[0]] = _merge(units, [term.ids[axis] for axis in old])
        else:
            for axis in old:
                units.pin(term.ids[axis], "used by reshape")
            for axis in new:
                ids[axis] = fixed(shape[axis])
        if any(term.known.value.shape[axis] > 1 for axis in old):
            split.update(old)
    known = spread(term.known, term.shape, split)
    sizes = [1] * len(shape)
    for old, new in blocks:
        if len(old) == len(new) == 1:
            sizes[new[0]] = known.value.shape[old[0]]
        elif split.intersection(old):
            for axis in new:
                sizes[axis] = shape[axis]
    return Term(tuple(ids), collapse(Known(*(array.reshape(sizes) for array in known))))


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of consecutive axes of both shapes that hold equally many positions.

    Axes of length 1 are in no group.
    """
    old_axes = [axis for axis, size in enumerate(old) if size != 1]
    new_axes = [axis for axis, size in enumerate(new) if size != 1]
    blocks = []
    while old_axes or new_axes:
        left = [old_axes.pop(0)]
        right = [new_axes.pop(0)]
        left_size = old[left[0]]
        right_size = new[right[0]]
        while left_size != right_size:
            if left_size < right_size:
                left.append(old_axes.pop(0))
                left_size *= old[left[-1]]
            else:
                right.append(new_axes.pop(0))
                right_size *= new[right[-1]]
        blocks.append((left, right))
    return blocks


def _match_single_positions(units: Units, term: Term, shape: tuple[int, ...], ids: list[np.ndarray]) -> None:
    """Finds the units of axes of length 1 at the same place from the end of the new shape, or pins them."""
    for axis, axis_ids in enumerate(term.ids):
        if len(axis_ids) != 1:
            continue
        new_axis = axis - len(term.ids) + len(shape)
        if 0 <= new_axis < len(shape) and shape[new_axis] == 1:
            ids[new_axis] = axis_ids
        else:
            units.pin(axis_ids, "used by reshape")


def _merge(units: Units, parts: list[np.ndarray]) -> np.ndarray:
    """The units of axes that become one: those of the last axis that is not pinned. The others are kept."""
    chosen = max((i for i, ids in enumerate(parts) if not units.is_pinned(ids)), default=len(parts) - 1)
    for i, ids in enumerate(parts):
        if i != chosen:
            units.pin(ids, "used by reshape")
    lengths = [len(ids) for ids in parts]
    alone = [1] * len(parts)
    alone[chosen] = -1
    return np.broadcast_to(parts[chosen].reshape(alone), lengths).reshape(-1)


def squeeze(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Drops axes of length 1."""
    del shape, dtype
    (term,) = terms
    dropped = tuple(step.options["dimensions"])
    for axis in dropped:
        units.pin(term.ids[axis], "used by squeeze")
    known = Known(*(array.squeeze(dropped) for array in term.known))
    return Term(tuple(ids for axis, ids in enumerate(term.ids) if axis not in dropped), known)


def slice_(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Slices some axes. Their units are kept, since the code states where a slice starts and ends."""
    del dtype
    (term,) = terms
    starts = step.options["start_indices"]
    ends = step.options["limit_indices"]
    strides = step.options["strides"] or (1,) * len(shape)
    ids = []
    parts = []
    for axis, (axis_ids, start, end, stride) in enumerate(zip(term.ids, starts, ends, strides, strict=True)):
        if (start, end, stride) == (0, len(axis_ids), 1):
            ids.append(axis_ids)
            parts.append(slice(None))
            continue
        units.pin(axis_ids, "used by slice")
        part = slice(start, end, stride)
        ids.append(np.where(axis_ids[part] >= 0, FIXED, axis_ids[part]))
        # Constants of length 1 are the same along the whole axis.
        parts.append(slice(None) if term.known.value.shape[axis] == 1 else part)
    return Term(tuple(ids), collapse(Known(*(array[tuple(parts)] for array in term.known))))


def concatenate(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Joins arrays along an axis."""
    del dtype
    axis = step.options["dimension"]
    ids = [free(n) for n in shape]
    for term in terms:
        for other, other_ids in enumerate(term.ids):
            if other != axis:
                ids[other] = units.tie(ids[other], other_ids)
    ids[axis] = np.concatenate([np.where(term.ids[axis] == FREE, FIXED, term.ids[axis]) for term in terms])
    knowns = [spread(term.known, term.shape, {axis}) for term in terms]
    common = np.broadcast_shapes(*(_with_single(known.value.shape, axis) for known in knowns))
    knowns = [spread(known, common, set(range(len(shape))) - {axis}) for known in knowns]
    value = np.concatenate([known.value for known in knowns], axis)
    mask = np.concatenate([known.known for known in knowns], axis)
    return Term(tuple(ids), collapse(Known(value, mask)))


def _with_single(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape with length 1 at an axis."""
    return (*shape[:axis], 1, *shape[axis + 1 :])


def pad(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Puts a border around an array."""
    del dtype
    term, border = terms
    config = [(int(low), int(high), int(gap)) for low, high, gap in step.options["padding_config"]]
    padded = {axis for axis, widths in enumerate(config) if any(widths)}
    for axis in padded:
        units.pin(term.ids[axis], "used by pad")
    ids = tuple(fixed(size) if axis in padded else term.ids[axis] for axis, size in enumerate(shape))

    def with_border(array, border):
        return np.asarray(lax.pad(jnp.asarray(array), jnp.asarray(border.reshape(())), config))

    known = spread(term.known, term.shape, padded)
    value = with_border(known.value, border.known.value)
    mask = with_border(known.known, border.known.known)
    return Term(ids, collapse(Known(value, mask)))


def reduce(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Takes a sum or an extreme over axes, whose units are kept."""
    (term,) = terms
    axes = {int(axis) for axis in step.options["axes"]}
    for axis in axes:
        units.pin(term.ids[axis], f"used by {step.primitive.name}")
    ids = tuple(axis_ids for axis, axis_ids in enumerate(term.ids) if axis not in axes)
    mask = np.asarray(term.known.known.all(tuple(axes)))
    if not mask.any():
        return Term(ids, unknown(len(shape), dtype))
    known = spread(term.known, term.shape, axes)
    value = evaluate(step.primitive, step.options, np.where(known.known, known.value, np.zeros((), dtype)))
    return Term(ids, collapse(Known(value, mask)))


def window(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Takes a sum or an extreme over a window that slides along some axes, whose units are kept."""
    (term,) = terms
    options = step.options
    sizes = tuple(options["window_dimensions"])
    strides = tuple(options["window_strides"])
    padding = tuple(options["padding"])
    base_dilation = tuple(options["base_dilation"])
    window_dilation = tuple(options["window_dilation"])
    sliding = set()
    for axis in range(len(sizes)):
        if sizes[axis] > 1 or strides[axis] > 1 or any(padding[axis]) or base_dilation[axis] > 1:
            sliding.add(axis)
            units.pin(term.ids[axis], f"used by {step.primitive.name}")
    ids = tuple(fixed(size) if axis in sliding else term.ids[axis] for axis, size in enumerate(shape))
    if not term.known.known.any():
        return Term(ids, unknown(len(shape), dtype))
    known = spread(term.known, term.shape, sliding)
    value = evaluate(step.primitive, options, np.where(known.known, known.value, np.zeros((), dtype)))
    # The number of unknown values in each window.
    unknowns = lax.reduce_window(
        (~known.known).astype(np.float32),
        np.float32(0),
        lax.add,
        sizes,
        strides,
        padding,
        base_dilation,
        window_dilation,
    )
    return Term(ids, collapse(Known(value, np.asarray(unknowns) == 0)))


RULES: dict[str, Rule] = {
    "broadcast_in_dim": broadcast,
    "concatenate": concatenate,
    "pad": pad,
    "reshape": reshape,
    "slice": slice_,
    "squeeze": squeeze,
    "transpose": transpose,
    **{f"reduce_{name}": reduce for name in ("sum", "max", "min", "prod", "and", "or")},
    **{f"reduce_window_{name}": window for name in ("sum", "max", "min")},
}
