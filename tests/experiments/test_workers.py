"""Processes that do tasks: what they answer, what they outlive, and when they end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.grid import run as grid_run
from experiments.grid import workers
from experiments.grid.workers import Exited, Pool, output_to

FOREVER = "exec('while True: pass')"


def answer(pool, seconds=30):
    """The name and the answer of the next task that ends."""
    ((name, value),) = pool.completed(seconds)
    return name, value


def test_processes_answer_one_task_after_another(monkeypatch):
    monkeypatch.setenv("GRID_TEST_SET", "mine")
    with Pool(eval, [{"GRID_TEST_SET": "theirs", "GRID_TEST_EACH": name} for name in "ab"]) as pool:
        assert pool.has_free_worker
        pool.submit("a", "__import__('os').getpid()")
        pool.submit("b", FOREVER)
        assert not pool.has_free_worker
        assert pool.running == ["a", "b"]
        name, first = answer(pool)
        assert name == "a"
        pool.submit("c", "__import__('os').getpid(), __import__('os').getenv('GRID_TEST_SET')")
        assert answer(pool) == ("c", (first, "theirs"))
        pool.submit("d", "__import__('os').getenv('GRID_TEST_EACH')")
        assert answer(pool) == ("d", "a")
        # One that goes on is killed with the pool.
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_process_that_dies_says_so_and_another_takes_its_place():
    with Pool(eval, [{"GRID_TEST_EACH": "its own"}]) as pool:
        pool.submit("a", "__import__('os')._exit(3)")
        assert answer(pool) == ("a", Exited(3))
        pool.submit("b", "__import__('os').kill(__import__('os').getpid(), 9)")
        assert answer(pool) == ("b", Exited(-9))
        pool.submit("c", "__import__('os').getenv('GRID_TEST_EACH')")
        assert answer(pool) == ("c", "its own")


def test_signals_of_a_terminal_do_not_reach_a_process_but_stop_does():
    with Pool(eval, [{}]) as pool:
        pool.submit("a", "__import__('os').getpid()")
        _, pid = answer(pool)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        pool.submit("b", "'alive'")
        assert answer(pool) == ("b", "alive")
        pool.submit("c", FOREVER)
        assert pool.completed(0.2) == []
        pool.stop()
        assert answer(pool) == ("c", Exited(0))


@pytest.mark.slow
def test_variables_are_set_before_jax_reads_them(monkeypatch):
    monkeypatch.setenv("GRID_TEST_GONE", "here")
    environments = [{"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, {"JAX_ENABLE_X64": "1"}]
    with Pool(eval, environments, preload=["jax"]) as pool:
        pool.submit("devices", "__import__('jax').device_count()")
        assert answer(pool) == ("devices", 3)
        pool.submit("first", FOREVER)
        monkeypatch.delenv("GRID_TEST_GONE")
        pool.submit("type", "str(__import__('jax').numpy.ones(1).dtype), __import__('os').getenv('GRID_TEST_GONE')")
        assert answer(pool) == ("type", ("float64", None))


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a fork server")
def test_the_fork_server_of_a_grid_has_no_jax_backend(monkeypatch):
    # Another test may have started it with other variables for JAX, with which it serves nobody else.
    for name in workers._jax_variables(os.environ):
        monkeypatch.delenv(name)
    for name, value in workers._fork_server_jax_variables().items():
        monkeypatch.setenv(name, value)
    with Pool(eval, [{}], preload=grid_run._PRELOADED) as pool:
        pool.submit("server", "__import__('os').getppid()")
        _, server = answer(pool)
        assert server != os.getpid()
        # A backend names its threads; those of OpenBLAS, which survive a fork, have the name of the program.
        names = {task.joinpath("comm").read_text() for task in Path(f"/proc/{server}/task").iterdir()}
    assert len(names) == 1


def test_processes_end_when_their_parent_is_killed():
    script = (
        "import os, time\n"
        "from experiments.grid.workers import Pool\n"
        "with Pool(eval, [{}, {}]) as pool:\n"
        "    for name in 'ab':\n"
        "        pool.submit(name, '__import__(\"os\").getpid()')\n"
        "    pids = []\n"
        "    while len(pids) < 2:\n"
        "        pids += [pid for _, pid in pool.completed(9)]\n"
        f"    pool.submit('c', {FOREVER!r})\n"
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
