"""Compensations after a removal, one file each; they train nothing, or single layers. Importing registers them all."""

from elder.compensation import (  # noqa: F401 (imported to register)
    concatenate,
    flatten,
    ghost,
    halves,
    linear,
    magnitude,
    merge,
    refit,
)
from elder.compensation.base import Pruned, compensate, refuse_unfit
from elder.params.catalogue import COMPENSATIONS, NONE

__all__ = ["COMPENSATIONS", "NONE", "Pruned", "compensate", "refuse_unfit"]
