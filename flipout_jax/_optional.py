"""Optional dependencies: packages that are imported by the function that needs them."""

import importlib
from typing import Any


def load(module: str, *, needed_for: str, extra: str | None = None) -> Any:
    """Imports a module of a package that flipout_jax does not depend on.

    Args:
      module: the name of the module, such as `flax.nnx`.
      needed_for: the public function that needs it, for the message.
      extra: the extra of flipout_jax that installs the package; with None, the package is installed by its own name.

    Returns:
      The module.

    Raises:
      ImportError: if it cannot be imported; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        requirement = package if extra is None else f'"flipout_jax[{extra}]"'
        raise ImportError(f"{needed_for} needs {module}: pip install {requirement}.", name=module) from error
