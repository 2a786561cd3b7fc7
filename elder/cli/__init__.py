"""The command line of the library, which runs with no pipeline."""


def main() -> None:
    """Run the library's own command line."""
    from elder.cli.app import build_app
    from elder.cli.services import LIBRARY

    build_app(LIBRARY)()
