"""What the tests share: a compile cache, simple code, no network, quick Hypothesis, strict promotion, and fixtures."""

import functools
import ipaddress
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flipout_jax" / "tests"

# Compiling all of JAX takes each process two seconds. Where Python writes no bytecode beside the sources, it goes here.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(CACHES / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from experiments.devices import compile_cache
from flipout_jax import _numerics

# The first example of a shape pays for a compilation, which no deadline allows for.
settings.register_profile("quick", deadline=None, max_examples=20, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=400, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

HERE = Path(__file__).parent
STRICT_TOO = {"test_optax", "test_transforms"}
# Nearly all of the time goes into compilation, of programs that run for a millisecond. So XLA leaves optimizations out
# and generates simple code, in all tests and the processes that they start, but for tests of compiled programs and of
# exact selection. With JAX_DISABLE_MOST_OPTIMIZATIONS=0 it compiles everything as it does for users.
COMPILES_QUICKLY = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0"
jax.config.update("jax_disable_most_optimizations", COMPILES_QUICKLY)
SIMPLE_CODE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

# JAX's own checks of every trace take a fifth of the time. One job of continuous integration asks for them.
CHECKS_TRACES = os.environ.get("JAX_ENABLE_CHECKS", "0") not in ("", "0", "false", "False")

# As it is before any test patches it.
JIT = jax.jit

_CONNECTS = {"socket.connect", "socket.sendto", "socket.sendmsg"}
_LOOKS_UP = {"socket.getaddrinfo", "socket.gethostbyname"}


def _use_simple_code():
    """Has XLA on CPU generate simple code, which takes less than half the time.

    XLA ends the process where it does not know a flag, so another process tries the flags first, once for each cache.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if SIMPLE_CODE in flags:
        return
    flags = f"{flags} {SIMPLE_CODE}".strip()
    tried = COMPILED / f"simple_code-{jax.__version__}.txt"
    if not tried.exists():
        command = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
        process = subprocess.run(command, capture_output=True, env={**os.environ, "XLA_FLAGS": flags})
        tried.parent.mkdir(parents=True, exist_ok=True)
        tried.write_text("known" if process.returncode == 0 else "unknown", "utf-8")
    if tried.read_text("utf-8") == "known":
        os.environ["XLA_FLAGS"] = flags


def _share_contexts():
    """Has JAX lower a hundred programs in one MLIR context, as creating a context takes most programs longer.

    It has no option for that, so this reaches for a function of its own. Where there is none, nothing is shared.
    """
    from jax._src.interpreters import mlir

    create = getattr(mlir, "make_ir_context", None)
    if create is None:
        return
    shared = threading.local()

    def context():
        shared.uses = getattr(shared, "uses", 0) + 1
        if shared.uses % 100 == 1:
            shared.context = create()
        return shared.context

    mlir.make_ir_context = context


# All tests, the processes that they start, and later sessions share it.
COMPILED = compile_cache.use("tests", in_children=True)
if COMPILES_QUICKLY:
    _share_contexts()
    _use_simple_code()


def pytest_configure(config):
    """Removes old entries of the compile cache, once a session."""
    if hasattr(config, "workerinput"):
        return
    compile_cache.remove_old("tests")


def _only_loopback(event, arguments):
    """Fails a test that reaches for another machine."""
    # As Python exits, it raises other events when the names of this module are gone.
    if not event.startswith("socket."):
        return
    if event in _CONNECTS:
        address = arguments[1]
        # Other families, and a socket that is connected already, have no such address.
        host = address[0] if isinstance(address, tuple) else None
    elif event in _LOOKS_UP:
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost"):
        return
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        # Not an Exception, so that nothing on the way takes it for a server that is down.
        pytest.fail(f"A test must not use the network: {event} to {host!r}. Use data that the test makes.")


# Python raises these events for every socket, from when the first test module is imported.
sys.addaudithook(_only_loopback)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Tests of the core, fixtures included, promote no dtype and no rank without a word, and make no NaN unawares."""
    folder = item.path.parent
    if folder != HERE and item.path.stem not in STRICT_TOO:
        return (yield)
    promotes, makes_nan = (item.get_closest_marker(name) is not None for name in ("promotes", "makes_nan"))
    with (
        jax.numpy_dtype_promotion("standard" if promotes else "strict"),
        jax.numpy_rank_promotion("allow" if promotes else "raise"),
        jax.debug_nans(not makes_nan),
        jax.enable_checks(CHECKS_TRACES),
    ):
        return (yield)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Leaves most optimizations out of what a module compiles, also where the module before it had them."""
    jax.config.update("jax_disable_most_optimizations", COMPILES_QUICKLY)


@pytest.fixture(scope="module")
def all_large():
    """Has arrays of any size treated as large ones: none is joined with others, or kept rather than computed anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_numerics, "SMALL", 0)
        yield


@pytest.fixture(scope="module")
def default_code():
    """Has `jax.jit` compile as it does for users, for a whole module.

    XLA takes options for whole programs alone, so no jit may be called inside of another in such a module.
    """
    with pytest.MonkeyPatch.context() as patch:
        if SIMPLE_CODE in os.environ.get("XLA_FLAGS", ""):
            options = {"xla_cpu_use_fusion_emitters": True, "xla_cpu_parallel_codegen_split_count": 32}
            patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
        jax.config.update("jax_disable_most_optimizations", False)
        yield
    jax.config.update("jax_disable_most_optimizations", COMPILES_QUICKLY)


@pytest.fixture(scope="session")
def default_environment():
    """Variables with which a process compiles as it does for users."""
    flags = os.environ.get("XLA_FLAGS", "").replace(SIMPLE_CODE, "")
    return {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


@pytest.fixture
def empty_cache():
    """For tests that count what is compiled: after some thousand functions, JAX drops entries of its cache."""
    jax.clear_caches()


@pytest.fixture
def to_x64():
    """A function that switches to 64-bit mode, which ends with the test."""
    # jax.enable_x64 is not in the oldest JAX that the package works with.
    yield lambda: jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def x64(to_x64):
    """64-bit mode, for the whole of a test."""
    to_x64()


@pytest.fixture(scope="session")
def equations():
    """`equations(jaxpr)`: every equation of a jaxpr, those of its inner jaxprs included."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn
            for value in jax.tree.leaves(list(eqn.params.values())):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from walk(inner)

    return lambda closed: walk(closed.jaxpr)


@pytest.fixture(scope="session")
def train():
    """`train(optimizer, params, grads)`: all parameters and states of a run, stacked along a first axis.

    `grads` has the steps as first axis. Index -1 is the end of the run. It compiles once, as one scan, and quickly even
    where `default_code` is in use.
    """

    def train(optimizer, params, grads):
        def step(carry, g):
            params, state = carry
            updates, state = optimizer.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state)

        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", COMPILES_QUICKLY)
        try:
            return JIT(lambda carry, g: jax.lax.scan(step, carry, g)[1])((params, optimizer.init(params)), grads)
        finally:
            jax.config.update("jax_disable_most_optimizations", before)

    return train


@pytest.fixture(params=["prune", "flipout", "acdc"])
def halving(request):
    """`halving(inner, **options)`: an optimizer of each method that prunes to one half, in its first update alone."""
    import flipout_jax as fj

    half = fj.schedules.one_shot(0.5, step=1)
    phases = fj.schedules.Phases(sparse=(1,), dense=())
    makers = {
        "prune": lambda inner, **options: fj.prune(inner, half, **options),
        "flipout": lambda inner, **options: fj.flipout(inner, half, key=jax.random.key(0), **options),
        "acdc": lambda inner, **options: fj.acdc(inner, 0.5, phases, reset_momentum=False, **options),
    }
    return makers[request.param]


@pytest.fixture(scope="session")
def recorder():
    """An optimiser whose state is the gradients it was last given, and whose updates are 0.

    As the inner optimiser, it shows what `prune` passes on.
    """
    return optax.GradientTransformationExtraArgs(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None, **_: (jax.tree.map(jnp.zeros_like, updates), updates),
    )


@pytest.fixture(scope="session")
def raises():
    """`raises(name, value)`: expects the library's error on an argument, which names it and echoes the value."""

    def raises(name, value):
        return pytest.raises(ValueError, match=rf"(?s)^`{name}` must .*{re.escape(repr(value))}")

    return raises


@pytest.fixture(scope="session")
def assert_same():
    """`assert_same(a, b)`: two trees are equal in structure, dtypes and bits; NaN equals NaN."""

    def bits(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        x = np.asarray(x)
        return x.dtype, x.shape, x.tobytes()

    def assert_same(a, b):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
            assert bits(x) == bits(y), jax.tree_util.keystr(path)

    return assert_same


@pytest.fixture(scope="session")
def damage():
    """`damage(file, data)`: truncates, empties, overwrites, lengthens or flips a bit of a file, as Hypothesis draws."""

    def damage(file, data):
        content = file.read_bytes()
        kind = data.draw(st.sampled_from(["truncate", "empty", "flip", "overwrite", "lengthen"]), label="kind")
        if kind == "truncate":
            content = content[: data.draw(st.integers(0, len(content) - 1), label="bytes left")]
        elif kind == "empty":
            content = b""
        elif kind == "flip":
            bit = data.draw(st.integers(0, 8 * len(content) - 1), label="bit")
            changed = content[bit // 8] ^ (1 << bit % 8)
            content = content[: bit // 8] + bytes([changed]) + content[bit // 8 + 1 :]
        elif kind == "overwrite":
            content = data.draw(st.binary(max_size=200).filter(lambda other: other != content), label="content")
        else:
            content += data.draw(st.binary(min_size=1, max_size=20), label="appended")
        file.write_bytes(content)

    return damage
