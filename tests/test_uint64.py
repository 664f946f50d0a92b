"""Counts of two words against Python integers."""

import jax
import jax.numpy as jnp
from hypothesis import example, given
from hypothesis import strategies as st

from flipout_jax._select import _uint64

WORD, LIMIT = 2**32, 2**64
words = st.sampled_from([0, 1, 2**16 - 1, 2**16, 2**31, WORD - 1]) | st.integers(0, WORD - 1)
counts = st.builds(lambda high, low: high * WORD + low, words, words)


def to_int(count):
    assert count.high.dtype == count.low.dtype == jnp.uint32
    return int(count.high) * WORD + int(count.low)


@jax.jit
def everything(a, b):
    a_at_least_b = _uint64.at_least(a, b)
    return {
        "sum": _uint64.add(a, b),
        "difference": _uint64.subtract(a, b),
        "at_least": a_at_least_b,
        "maximum": _uint64.where(a_at_least_b, a, b),
    }


@given(counts, counts)
@example(LIMIT - 1, LIMIT - 1)
@example(0, 0)
@example(WORD, WORD - 1)
@example(WORD - 1, WORD)
@example(0, LIMIT - 1)
def test_arithmetic_is_that_of_integers_modulo_2_to_the_64(a, b):
    out = everything(_uint64.of(a), _uint64.of(b))
    assert to_int(out["sum"]) == (a + b) % LIMIT
    assert to_int(out["difference"]) == (a - b) % LIMIT
    assert bool(out["at_least"]) == (a >= b)
    assert to_int(out["maximum"]) == max(a, b)


@given(words, words)
@example(WORD - 1, WORD - 1)
@example(0, WORD - 1)
@example(2**16, 2**16)
def test_multiply_gives_the_full_product(a, b):
    assert to_int(_uint64.multiply(jnp.uint32(a), b)) == a * b


@given(st.lists(counts, min_size=1, max_size=5), st.data())
def test_a_table_gives_back_its_integers(values, data):
    index = data.draw(st.integers(0, len(values) - 1))
    table = _uint64.table(values)
    assert table.high.shape == table.low.shape == (len(values),)
    assert to_int(_uint64.take(table, jnp.int32(index))) == values[index]


@given(words)
def test_a_word_becomes_the_same_count(word):
    assert to_int(_uint64.of(jnp.uint32(word))) == to_int(_uint64.of(word)) == word
