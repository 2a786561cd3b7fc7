"""``elder plan``: what a compression would take, before any work."""

from dataclasses import dataclass
from typing import Annotated

import typer

from elder.cli.options import (
    CommonOptions,
    MemoryOptions,
    ModelName,
    PlaceOptions,
    SelectionMethod,
    SelectionOptions,
)
from elder.cli.output import show
from elder.cli.services import services_of


@dataclass(frozen=True)
class MachineOptions(MemoryOptions):
    """What a plan reckons with."""

    flops: Annotated[
        float | None,
        typer.Option(
            help="Operations that a model's passes do in a second, such as 4e14; by default measured here."
        ),
    ] = None


def plan(
    ctx: typer.Context,
    model: ModelName,
    *,
    method: SelectionMethod = None,
    selection: SelectionOptions,
    place: PlaceOptions,
    machine: MachineOptions,
    common: CommonOptions,
) -> None:
    """Say what each stage takes: memory, time, blocks at once. No weights are loaded."""
    values = {
        "model.name": model,
        **selection.values(),
        **place.values(),
        **machine.values(),
    }
    given = common.settings(values, method)
    from elder.device import device_of
    from elder.plan.machine import machine_here
    from elder.plan.plan import case_of, make_plan

    case = case_of(services_of(ctx).with_local_model(given))
    here = machine_here(device_of(given.model.device), case.compute, machine.flops)
    result, _ = make_plan(case, here, model)
    show(result, common.as_json, result.lines)
