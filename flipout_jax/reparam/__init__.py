"""Reparameterisations: what is trained is not the weights that the network sees; one method a file.

Each makes what is trained, and turns it into effective parameters inside the loss, by pure functions. A network of
frozen random weights and trained masks is saved as the key of the weights and the coded masks.
"""

from ._artifact import load as load
from ._artifact import save as save
from ._consensus import Consensus as Consensus
from ._consensus import consensus as consensus
from ._signed_constant import signed_constant as signed_constant
