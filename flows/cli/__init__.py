"""The ``elder`` command: the library's commands, and those of the pipeline around it."""


def main() -> None:
    """Run the ``elder`` command."""
    from flows.cli.app import build_app

    build_app()()
