"""How a process of this project behaves: what its libraries may print, how they use memory and threads, its home."""

import ctypes
import getpass
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

from elder.errors import UserError
from elder.progress import say

# For processes that work on a CPU; a user's own values win. glibc would give every large tensor back to the system and
# ask for it again. GNU OpenMP's threads would spin while they wait for each other, which takes from one another what a
# busy machine has left. `benchmarks/cpu.py` measures both. Other libraries do not look at these.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "1000"}


CPU_SETTINGS = KEEP_MEMORY | SPIN_BRIEFLY


# of the C library's mallopt, and what it lets this grow to by itself: what is larger goes back when it is freed
M_MMAP_THRESHOLD, LARGE = -3, 2**25
HOME = Path("build") / "home"  # in the working folder

_told: list[int] = []  # signals that asked this process to end


def give_memory_back() -> None:
    """Give large tensors back to the system once they are freed, whatever `KEEP_MEMORY` says: slower, and smaller."""
    _c_library("mallopt", M_MMAP_THRESHOLD, LARGE)


def trim_memory() -> None:
    """Give back what is free now."""
    _c_library("malloc_trim", 0)


def _c_library(name: str, *numbers: int) -> None:
    """Call what glibc has and other C libraries may lack."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*numbers)


def end_with_stdin() -> None:
    """End this process once its stdin ends, which the process that started it holds open; later in the background.

    What is written is written by rename.
    """
    # what stdin is now, whatever takes its place
    held = os.dup(0)

    def wait() -> None:
        while os.read(held, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def end_when_told() -> None:
    """Let SIGTERM close what is open, as Ctrl-C does; what fails after either is part of that end, and no fault."""

    def end(number: int, _: object) -> None:
        _told.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    # a shell has its background jobs ignore it
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def was_told_to_end() -> bool:
    """Say whether `end_when_told` was followed by such a signal."""
    return bool(_told)


def prepare_libraries() -> None:
    """Keep progress bars and notices of other libraries off the terminal, and let them find a home.

    Raises:
        UserError: there is none, and none can be made.
    """
    have_a_home()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # it asks the Hub to convert other people's weights
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    # it tells of weights that lie on no device, as was asked
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore")


def have_a_home() -> None:
    """Let libraries find a home that they can write to, and a user's name, where a container's user id has neither.

    Prefect keeps its database in the home, the Hub its cache; DVC and MLflow ask who the user is. A home that is there
    and cannot be written keeps its name: credentials may lie in it.

    Raises:
        UserError: there is none, and the working folder cannot be written either.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the system knows no name for this number
        os.environ["USER"] = str(os.geteuid())
    try:
        home = Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(_own_home("no home"))
        return
    if not os.access(home, os.W_OK | os.X_OK):
        wanted = {"PREFECT_HOME": ".prefect", "XDG_CACHE_HOME": ".cache"}
        if not wanted.keys() <= os.environ.keys():
            own = _own_home(f"a home, {home}, that cannot be written")
            for name, folder in wanted.items():
                os.environ.setdefault(name, str(own / folder))


def _own_home(lack: str) -> Path:
    """Return a home in the working folder, made where it is missing."""
    place = Path.cwd() / HOME
    if not place.is_dir():
        say(f"user {getpass.getuser()} has {lack}: {place} takes its place")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"user {getpass.getuser()} has {lack}, and {place} cannot be made ({error.strerror}): set HOME to a folder"
            " that can be written"
        ) from None
    return place
