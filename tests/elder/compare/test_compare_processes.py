"""Measuring in processes of their own: one that dies is told in a sentence, and none outlives what started it."""

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from elder.compare.plan import Measurement, Size, plan
from elder.compare.rows import parse_rows
from elder.compare.run import FOLDERS, KILLED, _in_own_process
from elder.params import Params

PATIENCE = 120  # seconds, for a machine with much else to do


@pytest.fixture
def measurements(model_folder: Path, text_file: Path) -> list[Measurement]:
    base = Params.model_validate(
        {
            "model": {"name": str(model_folder)},
            "calibration": {"source": str(text_file), "samples": 8, "seq_len": 32},
            "evaluate": {
                "in_domain": str(text_file),
                "out_of_domain": str(text_file),
                "tasks": (),
            },
        }
    )
    return plan(
        parse_rows("last"), base, [Size(layers=2)], [0], [base.calibration.source]
    )


def wait_for_child() -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for child in active_children():
            if child.pid:
                return child.pid
        time.sleep(0.05)
    raise TimeoutError("no process was started")


def test_a_killed_process_is_told_in_a_sentence(
    measurements: list[Measurement], tmp_path: Path
) -> None:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    killer = threading.Thread(target=lambda: os.kill(wait_for_child(), signal.SIGKILL))
    killer.start()
    assert _in_own_process(measurements[0], tmp_path) == KILLED
    killer.join()
    assert active_children() == []


@pytest.mark.parametrize("delay", [0.0, 0.05, 1.0])
def test_an_interruption_takes_the_measuring_process_with_it(
    delay: float, model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "elder",
        "compare",
        "--methods",
        "sleb",
        "--layers",
        "2",
    ]
    command += ["--model", str(model_folder), "--calibration", str(text_file)]
    for name in ("in_domain", "out_of_domain"):
        command += ["--set", f"evaluate.{name}={text_file}"]
    command += ["--set", "evaluate.tasks=[]", "--output", "out"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        children: list[int] = []
        while not children and time.monotonic() < deadline:
            children = measuring(process.pid)  # at once: while it still starts
        assert children, "no process was started"
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)  # to all of them, as a terminal does
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert said.splitlines()[-1].startswith(
        "interrupted: nothing was left half-written"
    )
    assert "Traceback" not in said
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def measuring(parent: int) -> list[int]:
    """Return the processes that a process has started to measure in."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    children = []
    for pid in listed:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"multiprocessing.spawn" in line:
            children.append(int(pid))
    return children
