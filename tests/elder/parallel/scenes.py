"""What the tests of several processes let one process do, and two: as a module, and as the program of each process.

``scenes.py stage job ...`` is the stage command; a process that is told to is killed at a step. ``scenes.py scenes
PARAMS MODEL TEXT WORK OUTPUT`` does the last stage in WORK, and writes what is in no stage into OUTPUT.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from elder.compression.job import open_job
from elder.compression.stages import STAGES
from elder.model import head
from elder.model.forward import next_token_losses
from elder.model.layers import find_layers, remove_layers
from elder.parallel import ranks
from elder.parallel.launch import launch
from elder.parallel.shard import divide, whole_state
from elder.recovery import recover, student_of
from elder.selection.base import Problem, Selection, run_method
from elder.settings import load_params, validate
from elder.training import checkpoint
from elder.training.data import training_data
from elder.training.loop import TrainingRun
from elder.training.regularise import regularise

DIES = "ELDER_TEST_DIES"  # RANK:STEP of the process that is killed once a checkpoint is written there
# positions whose logits stand at once: a batch takes several portions, and not as many in each process
PORTION = 20
RUN = TrainingRun("test", 0, torch.float32)
REMOVED = (2, 3)
BLOCKS = torch.randint(1, 257, (9, 24), generator=torch.Generator().manual_seed(1))


def load(folder: Path, *, shallow: bool = False) -> Any:
    """Return the tiny model, divided among all processes."""
    model = LlamaForCausalLM.from_pretrained(folder)
    if shallow:
        remove_layers(model, REMOVED)
    if ranks.count() > 1:
        model.requires_grad_(False)
        divide(model, find_layers(model), "cpu")
    return model


def muon_regularised(folder: Path) -> Any:
    """Train all layers by stage 2 with Muon, a batch that two processes cannot halve, and layers computed twice."""
    values = {"epochs": 1, "batch": 3, "lr": 1e-3, "optimizer": "muon", "lambda2": 0.01}
    wanted = validate({"regularise": values | {"gradient_checkpointing": True}})
    model = load(folder)
    regularise(model, REMOVED, training_data(BLOCKS), wanted.regularise, RUN)
    return model


def adapters_recovered(folder: Path) -> Any:
    """Train adapters of a shallower model on logits, hidden states and text of the dense one, by trials."""
    values = {"mode": "distil", "epochs": 2, "batch": 4, "adapter_rank": 4}
    own = {"distil": {"hidden": 0.5, "next_token": 0.3}}
    wanted = validate({"recover": values | own}).recover
    dense, model = load(folder), load(folder, shallow=True)
    student = student_of(wanted, model, dense, REMOVED)
    recover(student, training_data(BLOCKS), wanted, RUN)
    return model


METHODS = ("sleb", "shortgpt", "angular", "shortened-ppl")
SCENES = {"muon": muon_regularised, "adapters": adapters_recovered}


def scenes(folder: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each scene and the weights that it ends with."""
    for name, scene in SCENES.items():
        yield name, whole_state(scene(folder))


def selections(folder: Path) -> dict[str, Selection]:
    """Return what methods choose that share out batches, of a size that leaves one of them short."""
    found = {}
    for name in METHODS:
        wanted = validate({"select": {"method": name}}).select.settings_of(name)
        problem = Problem(load(folder), BLOCKS, 2, frozenset(), wanted, 0, 2)
        found[name] = run_method(name, problem)
    return found


def perplexity(model: Path, text: Path) -> list[float]:
    """Return the losses of a text, block by block, in batches of a size that leaves one of them short."""
    from elder.data import evaluation_blocks
    from elder.evaluation.perplexity import losses_of
    from elder.model.load import load_divided

    wanted = validate({"model": {"name": str(model), "device": "cpu"}}).model
    loaded = load_divided(wanted)
    blocks = evaluation_blocks(text, loaded.tokenizer, 32, 700, loaded.bos)
    found: list[float] = losses_of(loaded, blocks, 4).tolist()
    return found


def die_at(place: str) -> None:
    """Let the process RANK be killed once it has written the checkpoint of STEP; checkpoints are written at each."""
    checkpoint.CHECKPOINT_EVERY = -1.0
    write = checkpoint.Checkpoint.save_when_due

    def save(self: Any, model: Any, optimizer: Any, spent: Any) -> None:
        write(self, model, optimizer, spent)
        if self.path and f"{ranks.rank()}:{spent.optimizer_steps}" == place:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.Checkpoint.save_when_due = save  # type: ignore[method-assign]


def main() -> None:
    """Run the command line."""
    head.positions_at_once = lambda *_: PORTION
    if DIES in os.environ:
        die_at(os.environ[DIES])
    if sys.argv[1] == "stage":
        from elder.cli import main as command

        command()
        return
    place, model, text, work, output = map(Path, sys.argv[2:])
    settings = load_params(place)
    launch(settings)
    with open_job(work, settings, text, STAGES) as job:
        job.run("recover")
    ended: dict[str, Any] = dict(scenes(model))
    ended["selections"] = selections(model)
    ended["losses"] = torch.tensor(perplexity(model, text), dtype=torch.float64)
    alone = ranks.by_first(lambda: next_token_losses(load(model), BLOCKS).tolist())
    ended["alone"] = torch.tensor(alone)
    if ranks.is_first():
        torch.save(ended, output)


if __name__ == "__main__":
    main()
