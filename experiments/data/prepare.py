"""Finds a dataset of TensorFlow Datasets and downloads it once, or says quickly why that is impossible."""

import difflib
import importlib
import importlib.util
import logging
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ..errors import UserError
from .dataset import Options
from .known import KNOWN, Known

_TIMEOUT_SECONDS = 5


def builder(name: str, known: Known, options: Options) -> Any:
    """Returns the `tfds.core.DatasetBuilder` of a dataset, with its data prepared.

    Args:
      name: the dataset, as the user named it.
      known: its name in TensorFlow Datasets, and its home page.
      options: the options of reading it.

    Raises:
      UserError: if something is not installed, known, reachable, or writable.
    """
    tfds = import_tfds(name)
    found = _find(tfds, name, known.tfds, options.tfds_data_dir)
    if not Path(found.data_path).exists():
        _prepare(tfds, name, found, known)
    return found


def import_tfds(name: str) -> Any:
    """Returns the module `tensorflow_datasets`, which then logs errors only.

    Raises:
      UserError: if it or TensorFlow is not installed.
    """
    missing = [m for m in ("tensorflow_datasets", "tensorflow") if importlib.util.find_spec(m) is None]
    if missing:
        near = difflib.get_close_matches(name, ["digits", "tiny_imagenet", *KNOWN], 1)
        hint = f" Or is it {near[0]}?" if near and near[0] != name else ""
        if Path(name).expanduser().is_dir():
            hint = f" For images in the folder {name}, give --data folder:{name}."
        raise UserError(
            f"--data {name} is read with {' and '.join(missing)}, which is not installed: "
            f'pip install -e ".[experiments,tfds]".{hint}'
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Otherwise TensorFlow announces oneDNN at each start, and the log level above does not suppress that.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Imported by name, since type checkers run where it is not installed.
    return importlib.import_module("tensorflow_datasets")


def keep_off_accelerators() -> None:
    """Leaves the memory of the devices to JAX; TensorFlow would take all of it at its first computation."""
    importlib.import_module("tensorflow").config.set_visible_devices([], "GPU")


def _find(tfds: Any, name: str, tfds_name: str, data_dir: Path | None) -> Any:
    try:
        return tfds.builder(tfds_name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        names = sorted({"digits", "tiny_imagenet", *tfds.list_builders(with_community_datasets=False)})
        near = difflib.get_close_matches(name, names, 5) or ["digits", *KNOWN]
        hint = f"; the folder of that name is --data folder:{name}" if Path(name).expanduser().is_dir() else ""
        raise UserError(
            "--data must be `digits`, `folder:PATH` or the name of a set of TensorFlow Datasets, got "
            f"{name!r}. Similar names are: {', '.join(near)}{hint}."
        ) from None
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"--data {name} cannot be found in TensorFlow Datasets: {error}") from error


def _prepare(tfds: Any, name: str, builder: Any, known: Known) -> None:
    url = next(iter(builder.url_infos), builder.info.homepage)
    reason = _unreachable(url) if url else None
    if reason is not None:
        raise UserError(
            _how_to_prepare(name, builder, known, f"{urllib.parse.urlsplit(url).netloc} cannot be reached ({reason})")
        )
    keep_off_accelerators()
    try:
        # Unlike the default format, this one has random access, which a stream needs.
        file_format = "array_record" if importlib.util.find_spec("array_record") else None
        builder.download_and_prepare(
            file_format=file_format, download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    # Every dataset has code of its own, which raises its own errors if files are missing.
    except Exception as error:
        raise UserError(_how_to_prepare(name, builder, known, f"{type(error).__name__}: {error}")) from error


def _how_to_prepare(name: str, builder: Any, known: Known, reason: str) -> str:
    target = Path(builder.data_path)
    root = builder.data_dir_root
    return (
        f"--data {name} is not prepared in {target}, and cannot be prepared now: {reason}. On a machine with network, "
        f"run `python -m experiments.data {name} --tfds-data-dir DIR` and copy DIR/{target.relative_to(root)} to "
        f"{target} (or elsewhere, named by --tfds-data-dir). Or download the images from "
        f"{known.home or builder.info.homepage or 'their home page'}, and give --data folder:PATH for "
        "PATH/train/<class>/* and PATH/test/<class>/* (or val)."
    )


def _unreachable(url: str) -> str | None:
    """Returns why a server does not answer within seconds; None if it does. Proxy settings apply.

    TensorFlow Datasets itself would try for minutes.
    """
    reasons: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS).close()
            reasons.append(None)
        except urllib.error.HTTPError as error:
            # The server answers. Whether it has the file will show in the download.
            error.close()
            reasons.append(None)
        except (OSError, ValueError) as error:
            reasons.append(str(getattr(error, "reason", error)))

    # This runs in a thread because looking up a host's address has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * _TIMEOUT_SECONDS)
    return reasons[0] if reasons else "no answer"
