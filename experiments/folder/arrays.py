"""Named arrays in one safetensors file, with a digest that detects damage."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

_DIGEST = "sha256"


def save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays.

    Raises:
      OSError: if the file cannot be written.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        safetensors.numpy.save_file(arrays, file, metadata={_DIGEST: _digest(arrays)})
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def load(file: Path) -> dict[str, np.ndarray]:
    """Returns the arrays that `save` wrote. Nothing in the file is executed.

    Raises:
      OSError: if there is no such file.
      ValueError: if it is damaged, or was written by another program.
    """
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            arrays = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
    except OSError:
        raise
    # Damaged files raise many kinds of errors, and safetensors has one of its own.
    except Exception as error:
        raise ValueError(f"it is damaged ({error})") from error
    if _DIGEST not in metadata:
        raise ValueError("it is not by this program, as it has no digest")
    if _digest(arrays) != metadata[_DIGEST]:
        raise ValueError("it is damaged (its arrays are not as they were written)")
    return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        # The bytes are viewed as integers because the buffer protocol does not know bfloat16.
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
