"""Reparameterizations, which train something other than the weights of the network. One method per file.

Each method is a NamedTuple of pure functions, of which the first two are common to all:

- `init(key, params) -> trainable` creates the tree that is trained. It mirrors the parameters leaf for leaf. Leaves
  that are not prunable are the parameters themselves, unless the method states otherwise.
- `apply(frozen, trainable) -> effective params` computes the weights of the network, inside the loss. `frozen` is not
  changed by the optimizer of `trainable`.
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
