"""Programs in forks of one process that has paid for the imports; only then is HF_ENDPOINT read.

with warm(HF_ENDPOINT=url) as run:
    status, said = run("flows.cli", "evaluate", "owner/tiny", "--text", "novel.txt", cwd=folder)
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTS = "torch transformers datasets elder.cli.app elder.model.load flows.cli.app"
Run = Callable[..., tuple[int, str]]


@contextmanager
def warm(**env: str) -> Iterator[Run]:
    """Start the process; yields what runs a module's ``main`` with variables of its own: returns status and output."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
    )
    questions, answers = process.stdin, process.stdout
    assert questions
    assert answers

    def run(module: str, *arguments: str, cwd: Path, **env: str) -> tuple[int, str]:
        asked = [module, arguments, str(cwd), env]
        print(json.dumps(asked), file=questions, flush=True)
        status, said = json.loads(answers.readline())
        return status, said

    yield run
    process.kill()
    process.wait()


def serve() -> None:
    """Read from stdin what to run, run it in a fork, answer with its status and what it said."""
    from tests.chaos import forks

    for name in IMPORTS.split():
        import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        output = Path(asked[2]) / "output"
        ending = forks.run(lambda asked=asked: become(*asked), output)
        print(json.dumps([ending.status, ending.said]), flush=True)


def become(module: str, arguments: list[str], folder: str, env: dict[str, str]) -> None:
    """Run a module's ``main`` in a folder."""
    from huggingface_hub import constants

    os.chdir(folder)
    os.environ.update(env)
    constants.HF_HUB_OFFLINE = env.get("HF_HUB_OFFLINE") == "1"
    constants.DOWNLOAD_CHUNK_SIZE = 1024  # bytes that a cut download keeps whole
    sys.argv = ["program", *arguments]
    sys.exit(import_module(module).main())


if __name__ == "__main__":
    serve()
