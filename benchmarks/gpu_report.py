"""What `benchmarks/gpu.py` reports: model FLOPs, the share of the card's peak, the file of results and its tables."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from elder.errors import UserError
from elder.files import write_json

# dense bf16 FLOP/s of the tensor cores, by a part of the device's name: NVIDIA's data sheets; the first that fits holds
PEAKS = {
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}
# how often the work of one forward pass is done: (matrix products with weights, attention's own products)
FORWARD = (1, 1)
# forward and backward to the states alone: frozen weights have no gradient
FROZEN = (2, 3)
TRAINED = (3, 3)
FORMULA = (
    "MFU: model FLOPs over seconds over the card's dense bf16 peak. Model FLOPs of one token, forward: 2 for each "
    "weight it is multiplied with (norms and the embedding's look-up left out) and 2 x tokens in a block x width of "
    "attention a layer (causal). Forward and backward: 3 times that where all weights train; where they are frozen "
    "(layer weights, adapters) twice the first term and 3 times the second. What gradient checkpointing computes "
    "again is not counted."
)


def peak_flops(device: str) -> float | None:
    """Return the dense bf16 FLOP/s of a card by its name, None for one that is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def flops_per_token(
    config: LlamaConfig,
    seq_len: int,
    layers: float,
    heads: float = 1,
    times: tuple[int, int] = FORWARD,
) -> float:
    """Return the model FLOPs of one token, by a formula.

    `torch.utils.flop_counter` counts all that is done: the half of attention that the mask throws away, what
    checkpointing computes again, and only on a model that has its weights or is on the meta device. The tests hold
    the formula against it.

    Args:
        config: of the model.
        seq_len: tokens in a block.
        layers: layers that the token passes.
        heads: times it passes the output head.
        times: FORWARD, FROZEN or TRAINED.
    """
    width = config.num_attention_heads * config.head_dim
    narrow = config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * width + 2 * narrow + 3 * config.intermediate_size)
    linear = 2 * (layers * layer + heads * config.hidden_size * config.vocab_size)
    # 2 products of 2 FLOPs, half of them masked
    attention = 2 * layers * seq_len * width
    return times[0] * linear + times[1] * attention


def sleb_passes(layers: int, removed: list[int]) -> tuple[int, int]:
    """Return how many layers and output heads each token passes in sleb: whole once, then from each candidate on."""
    passed, heads = 0, 0
    for number in range(len(removed)):
        alive = [index for index in range(layers) if index not in removed[:number]]
        candidates = [index for index in alive if 0 < index < layers - 1]
        passed += len(alive) + sum(
            index > candidate for candidate in candidates for index in alive
        )
        heads += 1 + len(candidates)
    return passed, heads


class Results:
    """The file of results, ``results.json``: one record a stage, written anew by rename after each."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.path = folder, folder / "results.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.tree: dict[str, Any] = (
            json.loads(self.path.read_text()) if self.path.exists() else {}
        )
        for key in ("shape", "device"):
            if self.tree and self.tree[key] != about[key]:
                raise UserError(
                    f"{self.path} holds results of {key} {self.tree[key]!r}, these would be of {about[key]!r}; "
                    "name another folder with --out"
                )
        self.tree = {**about, "stages": self.tree.get("stages", {})}

    def done(self, stage: str) -> bool:
        """Say whether a stage has been measured; one that failed is tried again."""
        record = self.tree["stages"].get(stage)
        return record is not None and "error" not in record

    def put(self, stage: str, record: dict[str, Any]) -> None:
        """Keep the record of a stage, and the summary."""
        self.tree["stages"][stage] = {
            **record,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.path, self.tree)
        (self.folder / "summary.md").write_text(summary(self.tree), encoding="utf-8")


def summary(tree: dict[str, Any]) -> str:
    """Return all results as Markdown."""
    stages = tree["stages"]
    lines = [f"# {tree['title']}, on {tree['device']}", ""]
    lines += [
        f"{tree['date']}, `{tree['command']}`, torch {tree['packages']['torch']}, weights {tree['weights']}.",
        "",
    ]
    timed = {name: record for name, record in stages.items() if "seconds" in record}
    if timed:
        lines += [
            "| stage | blocks measured | seconds measured | seconds for all blocks | peak memory, GB | MFU |"
        ]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
        lines += [_stage_row(name, record) for name, record in timed.items()]
        lines += ["", FORMULA, ""]
    fast = {name: record for name, record in stages.items() if "ratio" in record}
    if fast:
        lines += [
            "| layers removed | | dense | pruned | ratio | published |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
        ]
        lines += [row for record in fast.values() for row in _speed_rows(record)]
        lines += [""]
    lines += [
        f"- {name}: {record['error']}"
        for name, record in stages.items()
        if "error" in record
    ]
    lines += [
        f"- {name}: {record['note']}"
        for name, record in stages.items()
        if "note" in record
    ]
    return "\n".join(lines).rstrip() + "\n"


def _stage_row(name: str, record: dict[str, Any]) -> str:
    mfu = "" if record.get("mfu") is None else f"{record['mfu']:.0%}"
    memory = (
        ""
        if "peak_memory_bytes" not in record
        else f"{record['peak_memory_bytes'] / 1e9:.1f}"
    )
    blocks, whole = "", ""
    if "blocks" in record:
        scaled = record["blocks"] < record["blocks_in_all"]
        blocks = f"{record['blocks']} of {record['blocks_in_all']}"
        whole = f"{record['seconds_for_all_blocks']:.1f}{' (extrapolated)' if scaled else ''}"
    return (
        f"| {name} | {blocks} | {record['seconds']:.1f} | {whole} | {memory} | {mfu} |"
    )


def _speed_rows(record: dict[str, Any]) -> list[str]:
    dense, pruned, ratio, published = (
        record[key] for key in ("dense", "pruned", "ratio", "published")
    )
    share = f"{record['removed']} of {record['layers']}"

    def row(what: str, key: str, scale: float, value: float, said: float | None) -> str:
        numbers = (
            f"{dense[key] * scale:,.1f} | {pruned[key] * scale:,.1f} | {value:.2f}x"
        )
        return f"| {share} | {what} | {numbers} | {'' if said is None else f'{said:.2f}x'} |"

    return [
        row(
            "prompt, ms",
            "prompt_ms",
            1,
            ratio["prompt_speedup"],
            published["prompt_speedup"],
        ),
        row(
            "generation, tokens/s",
            "tokens_per_second",
            1,
            ratio["throughput"],
            published["throughput"],
        ),
        row("peak memory, GB", "peak_memory_bytes", 1e-9, ratio["memory"], None),
    ]
