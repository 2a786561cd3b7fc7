"""The ``elder`` command: the library's commands, and those of the pipeline around it."""

from elder.cli import app
from flows.cli import audit, registry, run, serve, sweep

__all__ = ["audit", "main", "registry", "run", "serve", "sweep"]


def main() -> None:
    """Run the ``elder`` command."""
    app()
