"""Processes that do tasks: what they answer, what they outlive, and when they end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.grid.workers import Ended, Pool, output_to

FOREVER = "exec('while True: pass')"


def answer(pool, seconds=30):
    """The name and the answer of the next task that ends."""
    ((name, value),) = pool.answers(seconds)
    return name, value


def test_processes_answer_one_task_after_another(monkeypatch):
    monkeypatch.setenv("GRID_TEST_SET", "mine")
    with Pool(eval, [{"GRID_TEST_SET": "theirs", "GRID_TEST_EACH": name} for name in "ab"]) as pool:
        assert pool.is_free
        pool.give("a", "__import__('os').getpid()")
        pool.give("b", FOREVER)
        assert not pool.is_free
        assert pool.going == ["a", "b"]
        name, first = answer(pool)
        assert name == "a"
        pool.give("c", "__import__('os').getpid(), __import__('os').getenv('GRID_TEST_SET')")
        assert answer(pool) == ("c", (first, "theirs"))
        pool.give("d", "__import__('os').getenv('GRID_TEST_EACH')")
        assert answer(pool) == ("d", "a")
        # One that goes on is killed with the pool.
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_process_that_dies_says_so_and_another_takes_its_place():
    with Pool(eval, [{"GRID_TEST_EACH": "its own"}]) as pool:
        pool.give("a", "__import__('os')._exit(3)")
        assert answer(pool) == ("a", Ended(3))
        pool.give("b", "__import__('os').kill(__import__('os').getpid(), 9)")
        assert answer(pool) == ("b", Ended(-9))
        pool.give("c", "__import__('os').getenv('GRID_TEST_EACH')")
        assert answer(pool) == ("c", "its own")


def test_signals_of_a_terminal_do_not_reach_a_process_but_stop_does():
    with Pool(eval, [{}]) as pool:
        pool.give("a", "__import__('os').getpid()")
        _, pid = answer(pool)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        pool.give("b", "'alive'")
        assert answer(pool) == ("b", "alive")
        pool.give("c", FOREVER)
        assert pool.answers(0.2) == []
        pool.stop()
        assert answer(pool) == ("c", Ended(0))


def test_processes_end_when_their_parent_is_killed():
    script = (
        "import os, time\n"
        "from experiments.grid.workers import Pool\n"
        "with Pool(eval, [{}, {}]) as pool:\n"
        "    for name in 'ab':\n"
        "        pool.give(name, '__import__(\"os\").getpid()')\n"
        "    pids = []\n"
        "    while len(pids) < 2:\n"
        "        pids += [pid for _, pid in pool.answers(9)]\n"
        f"    pool.give('c', {FOREVER!r})\n"
        "    print(*pids, flush=True)\n"
        "    time.sleep(99)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    until = time.monotonic() + 30
    while any(map(is_running, pids)):
        assert time.monotonic() < until
        time.sleep(0.05)


def is_running(pid):
    try:
        # Without its name, which may hold anything.
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_is_printed_goes_to_the_end_of_a_file(tmp_path, capfd):
    file = tmp_path / "log.txt"
    file.write_text("before\n")
    with output_to(file):
        os.write(1, b"from below\n")
        os.write(2, b"an error\n")
    os.write(1, b"after\n")
    assert file.read_text() == "before\nfrom below\nan error\n"
    assert capfd.readouterr().out == "after\n"
