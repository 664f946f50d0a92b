"""Reparameterizations: what is trained is not the weights that the network sees; one method a file.

Each is a NamedTuple of pure functions. The first two are the same for all:

- `init(key, params) -> trainable` makes what is trained. It mirrors the parameters leaf for leaf, and its leaves that
  are not prunable are the parameters themselves, unless the method says otherwise.
- `apply(frozen, trainable) -> effective params` makes the weights that the network sees, inside the loss. `frozen` is
  what the optimizer of `trainable` does not change.
"""

from ._artifact import load as load
from ._artifact import save as save
from ._consensus import Consensus as Consensus
from ._consensus import consensus as consensus
from ._edge_popup import edge_popup as edge_popup
from ._powerprop import Powerprop as Powerprop
from ._powerprop import powerprop as powerprop
from ._signed_constant import signed_constant as signed_constant
from ._ste import Ste as Ste
from ._ste import ste_magnitude as ste_magnitude
from ._ste import ste_random as ste_random
from ._supermask import Supermask as Supermask
from ._supermask import signed_supermask as signed_supermask
from ._supermask import supermask as supermask
