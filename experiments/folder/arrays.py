"""Arrays by name in one safetensors file, with a digest that tells whether they are as they were written."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

_DIGEST = "sha256"


def save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays, or raises an `OSError`."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        safetensors.numpy.save_file(arrays, file, metadata={_DIGEST: _digest(arrays)})
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def load(file: Path) -> dict[str, np.ndarray]:
    """Reads arrays that `save` has written. Nothing of the file is run.

    Raises:
      OSError: if there is no such file.
      ValueError: if it is damaged, or of another program.
    """
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            arrays = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
    except OSError:
        raise
    # What a damaged file brings about differs from one to the next, and safetensors has an error of its own.
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
        # Through bytes, as a buffer knows nothing of bfloat16.
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
