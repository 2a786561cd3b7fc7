"""Run a command as several processes on this machine, by torchrun's own agent, and say in a sentence if one dies.

The command is started once for each, with the same words. They end with the process that started them, however that
one ends: the pipe that they have for stdin closes then.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from elder.errors import KILLED, Crash, UserError
from elder.parallel.ranks import join, was_started_as_rank
from elder.params import Params
from elder.process import end_with_stdin

ERROR_FILE = "ELDER_ERROR_FILE"  # where a process leaves the sentence that it ends with
SECONDS_TO_END = 10  # for the others to end once one has failed, before they are killed
SECONDS_TO_SPEAK = 2  # that a process waits before it tells a failure, which may be the death of another one


def launch(settings: Params) -> None:
    """Go on as ``launch.processes`` processes.

    Does nothing where that is one. Otherwise the command runs as several, and this process ends as they do; in each of
    them this returns once all have met.

    Raises:
        UserError: what they refuse, or if this machine has fewer GPUs.
        Crash: if one of them was killed.
    """
    if was_started_as_rank():
        if ERROR_FILE in os.environ:
            end_with_stdin()
        join(_device_type(settings))
        return
    processes = wanted_processes(settings)
    if processes > 1:
        sys.exit(_run(processes))


def wanted_processes(settings: Params) -> int:
    """Return how many processes a stage runs as; ``auto``: one for each GPU that there is.

    Raises:
        UserError: if layers are to lie elsewhere than on the GPUs, the device is one GPU by its number, or there are
            fewer GPUs than processes.
    """
    asked = settings.launch.processes
    if asked == 1:
        return 1
    import torch

    on_gpus = _device_type(settings) == "cuda"
    gpus = torch.cuda.device_count() if on_gpus else 0
    wanted = max(1, gpus) if asked == "auto" else asked
    if wanted > 1 and settings.select.offload != "none":
        raise UserError(
            f"launch.processes is {wanted} and select.offload is {settings.select.offload!r}: several processes divide "
            "the layers among their GPUs; set the processes to 1, or the offload to none"
        )
    if wanted > 1 and ":" in settings.model.device:
        raise UserError(
            f"launch.processes is {wanted} and model.device is {settings.model.device!r}: each process takes a GPU of "
            "its own; set the device to auto or cuda, or the processes to 1"
        )
    if on_gpus and wanted > gpus:
        raise UserError(
            f"launch.processes is {wanted}, and this machine has {gpus} GPUs; give at most as many, or auto"
        )
    return wanted


def _device_type(settings: Params) -> str:
    from elder.device import device_of

    return device_of(settings.model.device).type


def _run(processes: int) -> int:
    """Run this process's command as several; returns the exit status of one that failed for a reason it showed."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="elder-launch-") as folder:
        sentence = Path(folder) / "error"
        try:
            _start(processes, Path(folder), {ERROR_FILE: str(sentence)})
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise Crash(f"ended by {error.sigval.name}; run again to go on") from None
        except ChildFailedError as error:
            statuses = _at_fault(error.failures)
            told = sentence.read_text(encoding="utf-8") if sentence.exists() else None
            _tell(processes, statuses, told)
            return max(statuses.values())
    return 0


def _at_fault(failures: Mapping[int, Any]) -> dict[int, int]:
    """Return {process: exit status} of those that failed first; the agent ended the others."""
    begun = min(one.timestamp for one in failures.values())
    return {
        rank: one.exitcode
        for rank, one in failures.items()
        if one.timestamp - begun <= SECONDS_TO_SPEAK and one.exitcode != -signal.SIGTERM
    }


def _tell(processes: int, statuses: Mapping[int, int], sentence: str | None) -> None:
    """Raise what processes ended with: one that was killed before what others say of it; nothing if they showed it."""
    for rank, status in statuses.items():
        if status < 0:
            how = KILLED
            if status != -signal.SIGKILL:
                how = f"was killed by {signal.Signals(-status).name}"
            raise Crash(
                f"process {rank} of {processes} (0 to {processes - 1}) {how}; all were ended, and what they had "
                "finished is kept, run again to go on"
            )
    if sentence is not None:
        kind = UserError if max(statuses.values()) == 2 else Crash
        raise kind(sentence)


def _start(processes: int, logs: Path, more: Mapping[str, str]) -> None:
    """Start this process's command so many times, ``more`` standing in their environment, and wait for their end."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the sentence says it
    threads = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
        shutdown_timeout=SECONDS_TO_END,
    )
    command: list[Any] = sys.orig_argv[1:]
    reader, _held_open = os.pipe()
    os.dup2(reader, 0)
    before = dict(os.environ)
    os.environ.update(more)
    try:
        elastic_launch(config, sys.executable)(*command)
    finally:
        os.environ.clear()
        os.environ.update(before)
