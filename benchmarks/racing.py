"""What racing saves and how often it chooses as all blocks do: `sleb` and the default's shortlists, on bundled models.

    .venv/bin/python benchmarks/racing.py --out benchmarks/results            # two minutes a model, on one core
    .venv/bin/python benchmarks/racing.py models/novels-opt --share 0.5       # one of them, half of its layers

Every loss, of a block without a set of layers, is computed once and kept; all selections then run for real on what is
kept, whole and raced, over many orders of the blocks. A block evaluation is a candidate tried on a block. A layer
evaluation is a layer run on a block: a candidate takes those that come after it, the last of a batch all others too.
"""

import argparse
import datetime
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch

from elder import params
from elder.data import choose_blocks
from elder.model.layers import find_layers
from elder.model.load import load_model
from elder.selection import METHODS, Problem, Selection, layer_weights, trials
from elder.training.synthesis import Writing, synthetic_blocks

MODELS = ["models/novels-llama", "models/novels-neox", "models/novels-opt"]
CONFIDENCES = [0.8, 0.9, 0.95, 0.99]
ORDERS = 20  # of the blocks, for each confidence
TEXT = "data/calibration.txt"
TITLE = {"elder": "the default's shortlists", "sleb": "sleb"}
Row = dict[str, Any]
Key = tuple[frozenset[int], int]  # the layers that went before, and the candidate


@dataclass
class Kept:
    """Losses and learnt weights that are known already; counts the layer evaluations that computing would take."""

    layers: int
    order: int = 0
    evaluations: int = 0
    losses: dict[Key, dict[bytes, torch.Tensor]] = field(default_factory=dict)
    weights: dict[tuple[frozenset[int], int], torch.Tensor] = field(
        default_factory=dict
    )

    def candidate_losses(self, real: Callable) -> Callable:
        """Return `candidate_losses`, with each loss computed once."""

        def find(
            model: Any,
            control: Any,
            candidates: Collection[int],
            gone: Collection[int],
            ids: torch.Tensor,
        ) -> dict[int, torch.Tensor]:
            self.evaluations += len(ids) * cost(candidates, gone, self.layers)
            rows = [row.numpy().tobytes() for row in ids]
            known = {
                c: self.losses.setdefault((frozenset(gone), c), {}) for c in candidates
            }
            lacking = [
                c for c in candidates if any(row not in known[c] for row in rows)
            ]
            found = real(model, control, lacking, gone, ids) if lacking else {}
            for candidate, values in found.items():
                known[candidate].update(zip(rows, values, strict=True))
            return {c: torch.stack([known[c][row] for row in rows]) for c in candidates}

        return find

    def learn_round(self, real: Callable) -> Callable:
        """Return `learn_round`, with each round learnt once."""

        def learn(problem: Any, control: Any, *rest: Any) -> torch.Tensor:
            key = frozenset(control.bypassed), problem.count
            if key not in self.weights:
                self.weights[key] = real(problem, control, *rest)
            return self.weights[key]

        return learn

    def shuffle(self, real: Callable) -> Callable:
        """Return the order of a race's blocks, another for each ``order``."""
        return lambda tries, number: real(tries, number + 1000 * self.order)


def cost(candidates: Collection[int], gone: Collection[int], layers: int) -> int:
    """Return how many layers run on a block: see `elder.selection.candidates`."""
    *others, last = sorted(candidates)
    left = set(range(layers)) - set(gone)
    return len(left) - 1 + sum(len([i for i in left if i > one]) for one in others)


def measure(name: str, given: argparse.Namespace) -> Iterator[list[Row]]:
    """Yield the rows of one model, a row for each confidence, method by method and share by share of its layers."""
    loaded = load_model(params.Model(name=name))
    blocks = choose_blocks(
        Path(TEXT), loaded.tokenizer, given.samples, given.seq_len, 0
    )
    layers = len(find_layers(loaded.model))
    kept = Kept(layers)

    @cache
    def write(count: int) -> torch.Tensor:
        writing = Writing(count, seed=0, first=len(loaded.bos))
        return synthetic_blocks(loaded.model, blocks, writing)

    def select(method: str, count: int, confidence: float | None) -> Selection:
        settings = METHODS[method].settings(racing=confidence)
        asked = Problem(loaded.model, blocks, count, frozenset(), settings, 0, 8, write)
        return METHODS[method].function(asked)

    losses = kept.candidate_losses(trials.candidate_losses)
    learn = kept.learn_round(layer_weights.learn_round)
    order = kept.shuffle(trials.Trials._order)
    with (
        patch.object(trials, "candidate_losses", losses),
        patch.object(layer_weights, "learn_round", learn),
        patch.object(trials.Trials, "_order", order),
    ):
        for method, share in product(given.methods, given.share):
            count = round(share * layers)
            about = {"model": Path(name).name, "method": method, "layers": layers}
            found = compare(kept, partial(select, method, count))
            yield [about | {"removed": count} | one for one in found]


def compare(kept: Kept, select: Callable[[float | None], Selection]) -> list[Row]:
    """Return a row for each confidence: what the races took of what all blocks take, and how many chose the same."""
    kept.evaluations = 0
    whole, full = select(None), kept.evaluations
    rows = []
    for confidence in CONFIDENCES:
        same, shares = 0, []
        for kept.order in range(ORDERS):
            kept.evaluations = 0
            same += select(confidence).removed == whole.removed
            shares.append(kept.evaluations / full)
        rows.append(
            {
                "picks": list(whole.removed),
                "confidence": confidence,
                "layer_evaluations": full,
                "share": round(mean(shares), 3),
                "largest_share": round(max(shares), 3),
                "same": same,
                "of": ORDERS,
            }
        )
    return rows


def table(rows: list[Row], about: Row) -> str:
    """Return the rows as Markdown."""
    lines = [
        "# Racing",
        "",
        f"{about['date']}, `{about['command']}`: {about['samples']} blocks of {about['seq_len']} tokens of `{TEXT}`; "
        f"the default tries layers on what the dense model writes from them. {ORDERS} orders of the blocks for each "
        "confidence. Layer evaluations: a layer run on a block; the share is that of all blocks.",
        "",
        "| model | choice | picks | evaluations of all blocks | confidence | share, mean | largest | same picks |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in rows:
        picks = ", ".join(map(str, one["picks"]))
        lines.append(
            f"| {one['model']} | {TITLE[one['method']]} | {picks} of {one['layers']} | {one['layer_evaluations']:,} | "
            f"{one['confidence']} | {one['share']:.0%} | {one['largest_share']:.0%} | {one['same']} of {one['of']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write ``racing.json`` and ``racing.md`` after each method; what stands there of others stays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--methods", nargs="+", default=[*TITLE], choices=[*TITLE])
    parser.add_argument("--share", type=float, nargs="+", default=[0.25])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("build"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/racing.py MODEL --out benchmarks/results",
        "samples": given.samples,
        "seq_len": given.seq_len,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    results = given.out / "racing.json"
    for name in given.models:
        for found in measure(name, given):
            known = json.loads(results.read_text())["rows"] if results.exists() else []
            made = {unit(one) for one in found}
            rows = [one for one in known if unit(one) not in made] + found
            rows.sort(key=unit)
            whole = json.dumps(about | {"rows": rows}, indent=1)
            results.write_text(whole + "\n", encoding="utf-8")
            (given.out / "racing.md").write_text(table(rows, about), encoding="utf-8")


def unit(row: Row) -> tuple[str, str, int]:
    """Return what the rows of one measurement share."""
    return row["model"], row["method"], row["removed"]


if __name__ == "__main__":
    main()
