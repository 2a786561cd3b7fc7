"""Training-free compensation after a removal: one file each. Importing this package registers them all."""

from elder.compensation import linear, magnitude, merge  # noqa: F401 (imported to register)
from elder.compensation.base import Pruned, compensate
from elder.params.catalogue import COMPENSATIONS, NONE

__all__ = ["COMPENSATIONS", "NONE", "Pruned", "compensate"]
