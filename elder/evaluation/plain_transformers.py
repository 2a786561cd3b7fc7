"""Does a saved model work for those who do not have this project? Tried in a process that has transformers alone."""

import subprocess
import sys
from pathlib import Path

from elder.record import LoadTrial

LONGEST = 300  # characters of a fault

# transformers itself would fill weights that are missing with random numbers, and only warn
CODE = """
import sys
sys.modules.update(dict.fromkeys(("elder", "tasks", "flows")))  # importing one of them fails from here on
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, trust = sys.argv[1], sys.argv[2] == "True"
own = {"trust_remote_code": trust, "local_files_only": True}
model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **own)
wrong = {kind: sorted(map(str, info[f"{kind}_keys"]))[:3] for kind in ("missing", "unexpected", "mismatched")}
if any(wrong.values()):
    sys.exit("weights do not fit the configuration: " + "; ".join(f"{k} {v}" for k, v in wrong.items() if v))
ids = AutoTokenizer.from_pretrained(folder, **own)("It was a day", return_tensors="pt")["input_ids"]
with torch.inference_mode():
    finite = model.eval()(ids).logits.isfinite().all()
sys.exit(None if finite else "its logits are not finite")
"""


def load_in_plain_transformers(
    folder: Path, trust_remote_code: bool = False
) -> LoadTrial:
    """Load a saved model and its tokenizer with stock transformers in a fresh process, and run it once, on the CPU.

    Args:
        folder: the saved model.
        trust_remote_code: whether Python code that comes with the model may run.

    Returns:
        Whether it works, and if not, one line that says what was wrong.
    """
    command = [sys.executable, "-P", "-c", CODE, str(folder), str(trust_remote_code)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return LoadTrial(ok=True, fault=None)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    fault = (
        lines[-1][:LONGEST] if lines else f"the process ended with {done.returncode}"
    )
    return LoadTrial(ok=False, fault=fault)
