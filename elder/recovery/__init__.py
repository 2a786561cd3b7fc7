"""Recoveries: what the shallower model learns from, one file each. To add one, write its file and import it here."""

from elder.params.catalogue import NONE, RECOVERIES
from elder.recovery import distil, train  # noqa: F401 (imported to register)
from elder.recovery.base import Student, recover, recovering, student_of

__all__ = ["NONE", "RECOVERIES", "Student", "recover", "recovering", "student_of"]
