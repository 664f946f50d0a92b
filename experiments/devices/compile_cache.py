"""A cache of compiled programs on disk, so that processes which run the same program compile it once."""

import contextlib
import hashlib
import os
import platform
import time
from pathlib import Path

import jax

# A change of the code leaves entries that nothing asks for again.
DAYS = 30
_FOLDER, _LEAST_SECONDS, _LEAST_BYTES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def use(name: str, in_children: bool = False) -> Path:
    """Has JAX keep what this process compiles from now on, however small and quick, and returns the folder.

    The folder is `name` in the user's cache folder, with one for each version of JAX on each kind of processor, unless
    the environment names another. JAX stores what XLA compiled by a key of the program and its options.

    Args:
      name: the folder in `~/.cache/flipout_jax` (or in `$XDG_CACHE_HOME` instead of `~/.cache`).
      in_children: whether the processes that this one starts have the same cache, by their environment.
    """
    folder = os.environ.get(_FOLDER.upper(), str(_folder(name)))
    values = {_FOLDER: folder, _LEAST_SECONDS: 0, _LEAST_BYTES: -1}
    for option, value in values.items():
        jax.config.update(option, value)
    if in_children:
        os.environ.update({option.upper(): str(value) for option, value in values.items()})
    return Path(folder)


def remove_old(name: str) -> None:
    """Removes the entries that are older than 30 days from the cache of that name in the user's cache folder."""
    for entry in _folder(name).glob("*"):
        # Another process may do the same.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - entry.stat().st_mtime > 24 * 3600 * DAYS:
                entry.unlink()


def _folder(name: str) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return home / "flipout_jax" / name / f"jax-{jax.__version__}-{_processor()}"


def _processor() -> str:
    """Returns eight hexadecimal digits that stand for the instructions that the processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        described = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    except OSError:
        described = [platform.machine(), platform.processor()]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:8]
