"""The experiments of the papers, one paper per file; `PRESETS` has them by name."""

from . import flipout, granet, grasp, growth, journal, ours, search, supermask
from .preset import Preset

PRESETS: dict[str, Preset] = {
    **flipout.PRESETS,
    **journal.PRESETS,
    **grasp.PRESETS,
    **granet.PRESETS,
    **supermask.PRESETS,
    **ours.PRESETS,
    **search.PRESETS,
    **growth.PRESETS,
}
