"""Plan a compression: what each stage takes on a machine, and which parameters let it fit."""

from elder.device import device_of
from elder.model.check import check_model
from elder.names import split_revision
from elder.params import Params
from elder.plan.case import Case
from elder.plan.choose import Chosen, choose
from elder.plan.machine import Machine, machine_here
from elder.plan.result import PlanResult
from elder.plan.simulate import UnforeseenError
from elder.progress import say

TOY = 1_000_000  # parameters below which there is nothing to plan


def case_of(settings: Params) -> Case:
    """Return the case of a compression whose ``model.name`` is a folder, a GGUF file or a Hub id; no weights are read.

    Raises:
        UserError: whatever is wrong with the model.
    """
    source = split_revision(settings.model.name)[0]
    return Case(settings, check_model(source, settings.model))


def make_plan(case: Case, machine: Machine, name: str) -> tuple[PlanResult, Params]:
    """Return the plan of a compression, and the parameters that it asks for.

    Args:
        case: the compression; ``model.max_memory`` in its parameters limits what it may take.
        machine: where it is to run.
        name: of the model, as the user gave it.

    Raises:
        UserError: if it does not fit, or the model's code cannot be planned.
    """
    case = case.but(gpu=machine.gpu)
    several = case.settings.launch.processes != 1
    most: int | None = case.settings.model.max_memory
    if most is None and not several:  # they divide the model among their GPUs
        most = machine.limit
    alone = machine.room(machine.memory) if several else None
    chosen = choose(case, machine.room(most), alone)
    return _result(chosen, machine, name), chosen.case.settings


def fitted(settings: Params) -> Params:
    """Return the parameters with which a compression fits, and say in a line what it takes.

    Raises:
        UserError: if there is a limit, and it does not fit or cannot be planned.
    """
    case = case_of(settings)
    limited = settings.model.max_memory is not None
    if case.parameters < TOY and not limited:
        return settings
    try:
        machine = machine_here(device_of(settings.model.device), case.compute)
        plan, wanted = make_plan(case, machine, settings.model.name)
    except UnforeseenError as error:
        if limited:
            raise
        say(f"plan: {error}")
        return settings
    say(plan.short())
    return wanted


def _result(chosen: Chosen, machine: Machine, name: str) -> PlanResult:
    case = chosen.case
    stages = [
        stage.entry(machine.on_cpu, machine.seconds(stage)) for stage in chosen.stages
    ]
    return PlanResult(
        model=name,
        num_layers=case.layers,
        removed=case.gone,
        parameters=case.parameters,
        dtype=str(case.dtype).removeprefix("torch."),
        samples=case.samples,
        seq_len=case.shape.seq_len,
        device=machine.name,
        device_bytes=machine.memory,
        process_bytes=machine.process,
        max_memory=case.settings.model.max_memory,
        flops_per_second=machine.flops,
        settings=chosen.changes,
        stages=stages,
    )
