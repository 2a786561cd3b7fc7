"""Selection methods: one file each. To add one, write its file and import it here."""

from elder.selection import (
    angular,
    authors,
    floors,
    laco,
    layer_weights,
    prune_comp,
    shortened,
    shortgpt,
    sleb,
)
from elder.selection.base import (
    METHODS,
    Problem,
    Round,
    Selection,
    get_method,
    run_method,
)

__all__ = ["METHODS", "Problem", "Round", "Selection", "get_method", "run_method"]
__all__ += [
    "angular",
    "authors",
    "floors",
    "laco",
    "layer_weights",
    "prune_comp",
    "shortened",
    "shortgpt",
    "sleb",
]
