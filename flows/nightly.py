"""What ``elder run`` does, as a flow that Prefect can schedule: ``prefect.yaml`` deploys it as ``nightly``."""

from pathlib import Path

from prefect import flow
from prefect.states import Completed, State

from elder.settings import DEFAULT
from flows.environment import prepare_environment, project_root
from flows.run import read_settings, run_compression


@flow(name="nightly")
def nightly(
    params: str = "params.yaml",
    overrides: list[str] | None = None,
    method: str | None = None,
) -> State[None]:
    """Compress the model of a parameter file and bring the result to the registry.

    Args:
        params: parameter file, relative to the project's folder.
        overrides: ``section.key=value``, as for ``--set``.
        method: a method's own recipe; None for the default recipe.

    Returns:
        ``Completed`` with the version, or a state of the same type named ``Refused`` with the gate's reasons: a refusal
        is an answer, and trying again would not change it.
    """
    root = project_root()
    prepare_environment()
    settings = read_settings(Path(params), overrides, method)
    record = run_compression(settings, root, method or DEFAULT)
    if record.gate.refused:
        reasons = " ".join(record.gate.reasons)
        message = f"the gate refused run {record.run_id}: {reasons}"
        return Completed(name="Refused", message=message)
    name = settings.registry.name
    message = f"run {record.run_id} registered {name} version {record.model_version}"
    return Completed(message=message)
