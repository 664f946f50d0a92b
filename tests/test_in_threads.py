"""A function of many items in threads: in order, few items ahead, and an error ends it."""

import threading

import pytest

from flipout_jax import _in_threads


@pytest.fixture(autouse=True)
def three_cpus(monkeypatch):
    monkeypatch.setattr(_in_threads, "cpus", lambda: 3)


def test_results_come_in_the_order_of_the_items():
    # The first of three waits for the last of them, so that they end in another order.
    last = threading.Event()

    def work(number):
        if number % 3 == 2:
            last.set()
        elif number == 0:
            assert last.wait(60)
        return 10 * number

    assert list(_in_threads.ordered(work, ((i,) for i in range(100)))) == [10 * i for i in range(100)]
    assert list(_in_threads.ordered(work, [])) == []


def test_few_items_are_taken_before_their_results_are_asked_for():
    taken = []

    def items():
        for i in range(1000):
            taken.append(i)
            yield (i,)

    results = _in_threads.ordered(lambda i: i, items(), ahead=2)
    for i in range(1000):
        assert next(results) == i
        assert len(taken) <= i + 1 + 3 * 2
    assert next(results, None) is None


def test_an_error_is_raised_in_its_turn_and_what_has_not_begun_is_not_begun():
    done = []

    def work(i):
        if i == 5:
            raise ValueError("five")
        done.append(i)
        return i

    results = _in_threads.ordered(work, ((i,) for i in range(1000)))
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert max(done) < 5 + 3 * 4 + 3


def test_a_generator_that_is_closed_leaves_no_thread_behind():
    results = _in_threads.ordered(lambda i: i, ((i,) for i in range(1000)))
    next(results)
    assert any(thread.name.startswith("flipout_jax") for thread in threading.enumerate())
    results.close()
    assert not any(thread.name.startswith("flipout_jax") for thread in threading.enumerate())
