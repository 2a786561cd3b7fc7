"""What each compensation earns, on the same removed layers: perplexity untrained, and after a recovery of equal budget.

    .venv/bin/python benchmarks/compensations.py models/novels-llama --layers 3 > table.md

The layers are shortgpt's. A recovery is distillation on calibration blocks with Muon at a fixed relative rate; what a
compensation spends on training single layers, as a share of a model, is taken from its recovery. One seed. Results that
are quoted in docs/recipe.md lie in benchmarks/results/compensations.md.
"""

import argparse
import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elder import params
from elder.compensation import COMPENSATIONS, NONE, Pruned, compensate, refuse_unfit
from elder.compression.stages import select_layers
from elder.data import choose_blocks
from elder.errors import UserError
from elder.evaluation.perplexity import perplexity_of_text
from elder.model.forward import seed_everything
from elder.model.layers import remove_layers
from elder.model.load import Loaded, load_model
from elder.params import Params
from elder.recovery import RECOVERIES, student_of
from elder.settings import load_params
from elder.training.checkpoint import Schedule
from elder.training.loop import TrainingRun, train

SEQ_LEN, BATCH, RATE, SEED = 256, 4, 0.005, 0
TEXTS = ("data/in_domain.txt", "data/held_out.txt")


@dataclass(frozen=True)
class Bench:
    """The dense model, the layers that went, and how much is passed.

    Attributes:
        dense: in float32.
        removed: its layers that go.
        blocks: of calibration, (samples, 256).
        budget: tokens of training, of all stages together.
        max_tokens: of each text that is read.
        settings: all parameters.
    """

    dense: Loaded
    removed: tuple[int, ...]
    blocks: torch.Tensor
    budget: int
    max_tokens: int
    settings: Params

    def row(self, method: str, trained: bool) -> str:
        """Measure one compensation; returns its row of the table."""
        seed_everything(SEED)
        model = copy.deepcopy(self.dense.model)
        remove_layers(model, self.removed)
        own = None
        if method != NONE:
            own = self.settings.compensate.settings_of(method)
        started = time.monotonic()
        pruned = Pruned(
            model, self.dense.model, self.removed, self.blocks, own, 8, SEED
        )
        compensate(method, pruned)
        tokens = pruned.spent.tokens_seen
        if trained:
            tokens += self.recover(model, self.budget - tokens)
        seconds = time.monotonic() - started
        cells = [method, "yes" if trained else "no", *self.read(model)]
        return line([*cells, f"{tokens:,}", f"{seconds:.0f}"])

    def recover(self, model: Any, tokens: int) -> int:
        """Distil for as many tokens at most; returns how many were passed."""
        wanted = params.Recover.model_validate({"distil": {"synthetic": 0}})
        student = student_of(wanted, model, self.dense.model, self.removed)
        loss = RECOVERIES.find(wanted.mode).function(student)
        steps = tokens // (BATCH * SEQ_LEN)
        schedule = Schedule(steps, BATCH, "muon", RATE, True, wanted.warmup, 0.0, SEED)
        model.requires_grad_(True)
        run = TrainingRun("recover", SEED, torch.float32)
        return train(model, self.blocks, loss, schedule, run).tokens_seen

    def read(self, model: Any) -> list[str]:
        """Return the perplexity in and out of domain."""
        loaded = copy.copy(self.dense)
        object.__setattr__(loaded, "model", model)
        found = []
        for text in TEXTS:
            one = perplexity_of_text(loaded, Path(text), SEQ_LEN, self.max_tokens, 16)
            found.append(f"{one.perplexity:.2f}")
        return found


def line(cells: list[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def bench_of(given: argparse.Namespace) -> Bench:
    """Load the model, choose blocks and layers."""
    settings = load_params(
        None,
        [*given.set, "select.method=shortgpt", f"select.layers={given.layers}"],
        {"model.name": given.model},
    )
    dense = load_model(settings.model, torch.float32)
    dense.model.requires_grad_(False)
    text = Path(settings.calibration.source)
    blocks = choose_blocks(
        text, dense.tokenizer, given.samples, SEQ_LEN, SEED, dense.bos
    )
    removed = tuple(select_layers(dense, blocks, settings).removed)
    budget = int(given.passes * blocks.numel())
    return Bench(dense, removed, blocks, budget, given.max_tokens, settings)


def main() -> None:
    """Print the table to stdout, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int, required=True, help="layers that go")
    parser.add_argument("--samples", type=int, default=64, help="calibration blocks")
    parser.add_argument("--passes", type=float, default=3.0, help="budget of training")
    parser.add_argument("--max-tokens", type=int, default=16384, help="of each text")
    parser.add_argument("--untrained", help="compensations, with commas")
    parser.add_argument("--trained", help="the same, before a recovery")
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    given = parser.parse_args()
    bench = bench_of(given)
    everything = [NONE, *COMPENSATIONS]
    print(f"Removed: {', '.join(map(str, bench.removed))}.\n")
    head = ["compensation", "recovery", "in domain", "out of domain", "tokens", "s"]
    print(line(head), line(["---", "---", *["---:"] * 4]), sep="\n")
    print(line(["dense", "", *bench.read(bench.dense.model), "0", "0"]), flush=True)
    for trained, names in ((False, given.untrained), (True, given.trained)):
        for name in everything if names is None else filter(None, names.split(",")):
            try:
                refuse_unfit(name, bench.dense.model, bench.blocks)
                print(bench.row(name, trained), flush=True)
            except UserError as error:
                print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
