"""Reparameterisations: what is trained is not the weights that the network sees; one method a file.

Each makes what is trained, and turns it into effective parameters inside the loss, by pure functions.
"""

from ._consensus import Consensus as Consensus
from ._consensus import consensus as consensus
