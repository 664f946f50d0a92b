"""The experiments of the papers, by name: one paper a file."""

from . import flipout, grasp, journal, ours, search, supermask
from .preset import Preset

PRESETS: dict[str, Preset] = {
    **flipout.PRESETS,
    **journal.PRESETS,
    **grasp.PRESETS,
    **supermask.PRESETS,
    **ours.PRESETS,
    **search.PRESETS,
}
