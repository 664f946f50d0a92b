"""What a user sees of the package: public names alone, and nothing that is slow to import before it is used."""

import importlib
import inspect
import subprocess
import sys
import types
import typing

import pytest

import flipout_jax as fj

SUB_PACKAGES = [name for name in dir(fj) if isinstance(getattr(fj, name), types.ModuleType)]


def test_the_package_lists_its_sub_packages():
    assert set(SUB_PACKAGES) == {
        *("at_init", "checkpoint", "compact", "growth", "lottery", "penalties", "quantize", "reparam", "schedules"),
        "sparse",
    }


@pytest.mark.parametrize("name", ["", *SUB_PACKAGES])
def test_only_public_names_are_offered(name):
    module = importlib.import_module(f"flipout_jax.{name}".rstrip("."))
    for offered in dir(module):
        if offered.startswith("_"):
            continue
        value = getattr(module, offered)
        if typing.get_origin(value) is not None:
            # A type such as a Literal has neither a module nor a docstring.
            continue
        own = value.__name__ if inspect.ismodule(value) else value.__module__
        assert own.startswith("flipout_jax"), offered
        assert value.__doc__, offered


@pytest.mark.parametrize("name", SUB_PACKAGES)
def test_all_public_names_are_offered(name):
    module = getattr(fj, name)
    own = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    assert set(own) <= set(dir(module))
    assert all(hasattr(module, offered) for offered in dir(module))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'flipout_jax' has no attribute 'prun'$"):
        fj.prun  # noqa: B018
    assert not hasattr(fj, "artifact")


def test_what_takes_long_to_import_is_imported_when_it_is_used():
    program = (
        "import sys, jax, optax\n"
        "before = set(sys.modules)\n"
        "import flipout_jax as fj\n"
        "new = set(sys.modules) - before\n"
        "slow = {'jax.experimental.sparse', 'scipy.sparse.linalg', 'flax', 'orbax', 'zstandard', 'qwix'}\n"
        "assert not slow & new, slow & new\n"
        "assert 'jax.experimental.sparse' in sys.modules or fj.sparse.matmul\n"
        "assert 'jax.experimental.sparse' in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
