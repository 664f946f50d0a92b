"""Reparameterisations: what is trained is not the weights that the network sees; one method a file.

Each makes what is trained, and turns it into effective parameters inside the loss, by pure functions.
"""

from ._consensus import Consensus as Consensus
from ._consensus import consensus as consensus
from ._edge_popup import edge_popup as edge_popup
from ._sgdw import IndependentWeightDecayState as IndependentWeightDecayState
from ._sgdw import independent_weight_decay as independent_weight_decay
from ._sgdw import sgdw as sgdw
from ._supermask import Supermask as Supermask
from ._supermask import signed_supermask as signed_supermask
from ._supermask import supermask as supermask
