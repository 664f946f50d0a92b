"""Neither the package, nor the experiments, nor their tests reach for the network."""

import socket
import subprocess
import sys

import pytest

IMPORTS = """
import sys


def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"{event} at import: {arguments}")


sys.addaudithook(refuse)
import flipout_jax
import experiments.train
import jax

# What a run imports later, and what JAX does when it starts.
import experiments.data.stream
import experiments.folder.plots
import orbax.checkpoint

jax.devices()
print("fine")
"""


@pytest.mark.slow
def test_an_import_opens_no_socket():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fine\n"


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("socket.connect", (None, ("192.0.2.1", 443))),
        ("socket.connect", (None, ("2001:db8::1", 443, 0, 0))),
        ("socket.sendto", (None, ("192.0.2.1", 53))),
        ("socket.getaddrinfo", ("example.invalid", 443, 0, 0, 0)),
        ("socket.gethostbyname", ("example.invalid",)),
    ],
)
def test_a_test_that_uses_the_network_fails(event, arguments):
    # The event alone, so that nothing goes out should the guard be missing.
    with pytest.raises(pytest.fail.Exception, match=r"must not use the network: socket\."):
        sys.audit(event, *arguments)


def test_a_socket_asks_the_guard_before_it_connects():
    # Not loopback by its number, yet of this machine.
    with socket.socket() as client, pytest.raises(pytest.fail.Exception, match=r"socket\.connect to '0\.0\.0\.0'"):
        client.connect(("0.0.0.0", 9))


def test_a_test_may_connect_to_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()
