"""The application: which commands there are, and how their failures end."""

import errno
import os
import sys
import time
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from elder.cli import compare, export, library, plan, stage
from elder.cli.options import with_options
from elder.cli.output import print_any_character, refuse
from elder.cli.services import Services
from elder.errors import CRASHED, Crash, UserError
from elder.names import shown
from elder.parallel.launch import SECONDS_TO_SPEAK
from elder.parallel.ranks import was_started_as_rank
from elder.process import was_told_to_end
from elder.secrecy import hide_given_secrets

INTERRUPTED = "interrupted: nothing was left half-written; the same command goes on from where it was"
# what the system refuses because of a name or of whose it is
REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
}
DISK_FULL = "error: the disk is full; free some space and give the same command again"


class PlainErrors(TyperGroup):
    """Commands whose failures end in one sentence: exit 2 for a wrong input or an interruption, 3 for a crash."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Read the command line and run the command."""
        print_any_character()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            refuse(f"error: {error}", 2)
        except KeyboardInterrupt:
            refuse(INTERRUPTED, 2)
        except Crash as error:
            refuse(f"error: {error}", CRASHED)
        except Exception as error:
            # as of a server that was told the same
            if was_told_to_end():
                refuse(INTERRUPTED, 2)
            # a wrong command line: its sentence repeats what was given
            if hasattr(error, "exit_code") and hasattr(error, "message"):
                error.message = hide_given_secrets(error.message)
            # what ends the command line by itself, and a reader of the output who has seen enough
            if hasattr(error, "exit_code") or isinstance(error, BrokenPipeError):
                raise
            _end_with(error)


def _end_with(error: Exception) -> NoReturn:
    """End after an error that no command expects: a full disk or memory is said, anything else is a fault of ours."""
    # safetensors wraps the system's error in a type of its own
    if "No space left on device" in str(error):
        refuse(DISK_FULL, 2)
    if isinstance(error, OSError) and error.filename and error.errno in REFUSED:
        name, reason = shown(str(error.filename)), os.strerror(error.errno)
        refuse(f"error: {name} cannot be used: {reason}; name another", 2)
    from elder.device import is_out_of_memory, out_of_memory

    if is_out_of_memory(error):
        refuse(f"error: {out_of_memory(error)}", 2)
    if was_started_as_rank():
        time.sleep(
            SECONDS_TO_SPEAK
        )  # if another one's death is the cause, this one is ended meanwhile
    trace = "".join(traceback.format_exception(error))
    print(hide_given_secrets(trace), end="", file=sys.stderr)
    sys.exit(CRASHED)


def build_app(services: Services) -> typer.Typer:
    """Return the library's command line.

    Args:
        services: what its commands need from outside.
    """
    app = typer.Typer(
        cls=PlainErrors,
        help="Make large language models shallower: find the layers a model can do without, remove them, "
        "judge the result.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"obj": services},
    )
    commands = (
        library.select,
        library.compress,
        library.evaluate,
        library.bench,
        plan.plan,
        compare.compare,
        export.export,
    )
    for command in commands:
        app.command()(with_options(command))
    app.add_typer(stage.app, name="stage", hidden=True)
    return app
