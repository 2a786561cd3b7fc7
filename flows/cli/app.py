"""The whole command line: the library's commands with the pipeline's store and datasets, and the pipeline's own."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from elder.cli.app import build_app as build_library
from elder.cli.options import with_options
from elder.cli.services import LIBRARY, Services
from elder.params import Params
from flows.cli import audit, keys, registry, run, serve, sweep
from flows.environment import prepare_environment

if TYPE_CHECKING:
    from elder.compare.run import Measuring

COMMANDS = (
    audit.audit,
    audit.reproduce,
    registry.promote,
    registry.rollback,
    registry.history,
    keys.keys,
    run.run,
    run.doctor,
    serve.serve,
    sweep.sweep,
)


def _local_model(name: str, settings: Params) -> str:
    from tasks.store.models import local_model

    return local_model(name, settings)


def _text_of_dataset(settings: Params, name: str, folder: Path) -> Path:
    from tasks.texts import text_of_dataset

    prepare_environment()
    return text_of_dataset(settings, name, folder)


def _measuring(settings: Params) -> "Measuring":
    if settings.launch.ray is None:
        return LIBRARY.measuring(settings)
    prepare_environment()
    from flows.compare import measuring

    return measuring(settings)


SERVICES = Services(_local_model, _text_of_dataset, _measuring)


def build_app() -> typer.Typer:
    """Return the whole command line."""
    app = build_library(SERVICES)
    for command in COMMANDS:
        app.command()(with_options(command))
    return app
