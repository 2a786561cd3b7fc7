"""What the choice of layers needs: to run the model, or to look into its weights, which must then all be there."""

from importlib.util import find_spec

from elder import params
from elder.compensation import COMPENSATIONS, NONE
from elder.errors import UserError
from elder.params.catalogue import SELECTIONS
from elder.selection.layer_weights import LayerWeightSettings


def only_runs(settings: params.Params) -> bool:
    """Say whether layers are chosen by running the model alone: neither method nor compensation looks at weights.

    Raises:
        UserError: for an unknown method.
    """
    return _who_looks(settings.select, settings.compensation) is None


def refuse_offload(wanted: params.Select, compensation: str = NONE) -> None:
    """Refuse ``select.offload`` where the choice of layers looks into weights, which are nowhere until they run.

    So it is where text was asked for, to judge layers by: each of its tokens would bring all layers.

    Args:
        wanted: the method, and where layers lie.
        compensation: which comes after the choice; unknown ones are left to others.

    Raises:
        UserError: naming what looks at weights or writes, or the package that is missing; for an unknown method.
    """
    if wanted.offload == "none":
        return
    asked = f"select.offload is {wanted.offload}"
    who = _who_looks(wanted, compensation)
    if who is not None:
        others = [name for name, entry in SELECTIONS.items() if entry.divided]
        raise UserError(
            f"{asked}, and {who} looks into the weights of all layers; set select.offload to none, or leave the choice "
            f"to what only runs the model: {', '.join(others)}"
        )
    own = wanted.settings_of(wanted.method)
    if (
        isinstance(own, LayerWeightSettings)
        and own.tries
        and own.written not in ("auto", 0)
    ):
        raise UserError(
            f"{asked}, and select.elder.written is {own.written}: each token that is written would bring all layers; "
            "set it to 0, and calibration text judges, or select.offload to none"
        )
    if find_spec("accelerate") is None:
        raise UserError(
            f"{asked}, which needs the package accelerate: pip install 'elder[offload]'"
        )


def _who_looks(wanted: params.Select, compensation: str) -> str | None:
    """Return what looks into weights before or while layers are chosen, as a user wrote it; None: nothing does."""
    if not SELECTIONS.find(wanted.method).divided:
        return f"select.method {wanted.method}"
    if compensation in COMPENSATIONS and COMPENSATIONS.find(compensation).check:
        return f"compensate.method {compensation}"
    return None
