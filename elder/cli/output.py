"""What a command prints: its result, or the one sentence that it ends with."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from elder.files import write_text
from elder.parallel.ranks import is_first
from elder.progress import one_line, say
from elder.record import Json, Plain, json_safe, plain


def show(
    result: Plain | dict[str, Json], as_json: bool, lines: Callable[[], list[str]]
) -> None:
    """Print a result: one JSON object, or lines for people, each of which stays one line.

    JSON has no word for what is not finite: it stands as null. Of several processes, the first prints it.
    """
    if not is_first():
        return
    if as_json:
        tree = plain(result) if isinstance(result, Plain) else result
        print(json.dumps(json_safe(tree), allow_nan=False))
        return
    for line in lines():
        print(one_line(line))


def refuse(sentence: str, status: int) -> NoReturn:
    """Say a sentence and exit; a stage leaves it to the flow that started it, which says it once.

    Faults of parameters are listed in lines of their own; all other characters that would move the cursor are escaped.
    """
    lines = [one_line(line) for line in sentence.split("\n")]
    if "ELDER_ERROR_FILE" in os.environ:
        told = "\n".join(lines).removeprefix("error: ")
        write_text(Path(os.environ["ELDER_ERROR_FILE"]), told)
    else:
        for line in lines:
            say(line)
    sys.exit(status)


def print_any_character() -> None:
    """Let stdout and stderr take every character: what their encoding lacks is shown as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
