"""A comparison's rows on a Ray cluster: as `elder compare` measures them, several at once."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from elder.compare.plan import Measurement
from elder.compare.run import Measuring, Told, attempt
from elder.errors import UserError
from elder.params import Params
from flows.cluster import refuse_cluster, spread


def measuring(settings: Params) -> Measuring:
    """Return what makes the measurements of a comparison on a cluster.

    Args:
        settings: that say where the cluster is, and what a row needs of it.

    Raises:
        UserError: if no row could be sent there.
    """
    refuse_cluster(settings)

    def measure(rows: Sequence[Measurement], folder: Path, told: Told) -> None:
        def heard(one: Measurement, reason: str | None | UserError) -> None:
            told(one, str(reason) if isinstance(reason, UserError) else reason)

        function = partial(attempt, folder=folder.absolute())
        spread(function, rows, heard, settings, Path.cwd())

    return measure
