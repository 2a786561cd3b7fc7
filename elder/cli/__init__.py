"""The command line of the library, which runs with no pipeline."""

from elder.cli import compare, library, stage
from elder.cli.app import app

app.add_typer(stage.app, name="stage", hidden=True)
app.command()(compare.compare)

__all__ = ["app", "library", "main"]


def main() -> None:
    """Run the library's own command line."""
    app()
