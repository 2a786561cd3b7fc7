"""Records as runs write them, for the tests of what reads records; every number in them is made up."""

from typing import Any

TASKS = ("anaphor_agreement", "determiner_noun_agreement", "irregular_past_participle")
DIGEST = "5f" * 32


def make_row(
    name: str,
    kind: str,
    removed: list[int],
    inside: float,
    outside: float,
    trained: int = 0,
) -> dict[str, Any]:
    tasks = {}
    for index, task in enumerate(TASKS):
        value = 0.9 - outside / 500 - 0.03 * index
        tasks[task] = {"metric": "acc", "value": value, "stderr": 0.031, "version": 1.0}
    return {
        "name": name,
        "kind": kind,
        "removed": removed,
        "perplexity": {
            "in_domain": {"perplexity": inside, "stderr": 0.41, "tokens": 65_280},
            "out_of_domain": {"perplexity": outside, "stderr": 0.62, "tokens": 130_560},
        },
        "tasks": tasks,
        "task_mean": {"value": 0.87 - outside / 500, "stderr": 0.018},
        "parameters": 5_730_000 - 1_234_944 * len(removed) // max(3, len(removed)),
        "tokens_seen": trained,
        "optimizer_steps": trained // 2048,
        "trainable_parameters": 4_495_056 if trained else 0,
        "seconds": 4.21 + trained / 2000,
        "peak_memory_bytes": 812_646_400,
    }


def make_record(
    layers: int = 12, removed: tuple[int, ...] = (8, 7, 4)
) -> dict[str, Any]:
    """Return a whole record of a run whose numbers resemble a real one."""
    rounds = []
    for turn, gone in enumerate(removed):
        worth = [
            130_200 + 37 * (layer - gone) ** 2 + 1_900 * turn for layer in range(layers)
        ]
        hidden = {0, layers - 1, *removed[:turn]}
        rounds.append(
            {
                "removed": [gone],
                "values": [
                    None if i in hidden else float(v) for i, v in enumerate(worth)
                ],
            }
        )
    learnt = [
        {
            "removed": [gone],
            "values": [
                round(0.2 + 0.06 * abs(layer - gone), 3) for layer in range(layers)
            ],
        }
        for gone in removed
    ]
    steps = range(1, 97)
    return {
        "run_id": "20261124-021500-ab12cd34",
        "created": "2026-11-24T02:15:00+00:00",
        "seconds": 214.6,
        "model": {
            "name": "models/novels-llama",
            "revision": None,
            "digest": "5f" * 32,
            "num_layers": layers,
            "parameters": 5_730_000,
        },
        "method": "default",
        "recipe": {
            "select": {"method": "sleb", "layers": len(removed)},
            "recover": {"mode": "distil", "lr": 3e-4},
        },
        "removed": list(removed),
        "kept": [layer for layer in range(layers) if layer not in removed],
        "scores": {"name": "summed loss", "lower_goes": True, "rounds": rounds},
        "weights": {"name": "layer weight", "lower_goes": True, "rounds": learnt},
        "rows": [
            make_row("dense", "dense", [], 38.2, 41.3),
            make_row(
                "default", "candidate", list(removed), 41.6, 45.7, trained=196_608
            ),
            make_row("shortgpt", "baseline", list(removed), 47.9, 51.8),
            make_row("sleb", "baseline", list(removed), 47.1, 51.6),
            make_row("elder", "baseline", list(removed), 47.4, 51.9, trained=196_608),
        ],
        "curve": [
            {
                "stage": "recover",
                "step": step,
                "loss": 0.9 / step**0.3 + 0.02 * (step % 7),
                "lr": 3e-4 * step / 96,
            }
            for step in steps
        ],
        "search": [
            {
                "stage": "recover",
                "lr": lr,
                "lambda2": None,
                "held_out_loss": loss,
                "tokens": 16_384,
                "chosen": lr == 3e-4,
            }
            for lr, loss in ((1e-4, 3.871), (3e-4, 3.842), (1e-3, 3.913))
        ],
        "speed": {
            "dense": {
                "prompt_ms": 21.42,
                "prompt_ms_stdev": 0.61,
                "tokens_per_second": 1029.3,
                "peak_memory_bytes": 612_646_400,
                "parameters": 5_730_000,
            },
            "pruned": {
                "prompt_ms": 16.31,
                "prompt_ms_stdev": 0.48,
                "tokens_per_second": 1348.8,
                "peak_memory_bytes": 572_646_400,
                "parameters": 4_495_056,
            },
            "ratio": {"prompt_speedup": 1.313, "throughput": 1.310, "memory": 0.935},
            "protocol": {
                "prompt_tokens": 256,
                "batch": 16,
                "new_tokens": 64,
                "device": "cpu",
            },
        },
        "gate": {
            "mode": "on",
            "passed": True,
            "rules": [
                {
                    "rule": "perplexity out of domain",
                    "value": 1.1065,
                    "limit": 1.5,
                    "passed": True,
                    "reason": "The pruned model's perplexity is 1.11 times the dense model's; at most 1.5 is allowed.",
                },
                {
                    "rule": "generation with and without cache",
                    "value": True,
                    "limit": True,
                    "passed": True,
                    "reason": "Greedy generation gives the same tokens either way.",
                },
            ],
        },
        "lineage": {
            "git_commit": "0c65f02" + "a" * 33,
            "git_clean": True,
            "data": {"calibration.txt": "9b" * 16, "held_out.txt": "3c" * 16},
            "dvc_lock_sha256": "7e" * 32,
            "packages": {
                "torch": "2.13.0",
                "transformers": "5.23.0",
                "mlflow": "3.17.2",
            },
            "python": "3.11.7",
            "platform": "Linux-6.8-x86_64",
            "device": "cpu",
            "threads": 2,
            "seed": 0,
            "params": {
                "select": {"method": "sleb", "ratio": 0.25},
                "evaluate": {
                    "in_domain": "data/in_domain.txt",
                    "out_of_domain": "data/held_out.txt",
                },
            },
            "started_by": "ada",
        },
        "model_version": "3",
        "artifact": {
            "url": "s3://models/novels-llama-shallow/5f5f",
            "digest": "5f" * 32,
            "files": {
                "model.safetensors": {"sha256": "ab" * 32, "bytes": 9_012_345},
                "config.json": {"sha256": "cd" * 32, "bytes": 812},
            },
        },
    }


def compress_record() -> dict[str, Any]:
    """Return the record of ``elder compress`` alone: no rows, no speed, no gate."""
    whole = make_record()
    keys = (
        "model",
        "method",
        "recipe",
        "removed",
        "kept",
        "scores",
        "curve",
        "search",
        "seconds",
    )
    spent = {
        "tokens_seen": 196_608,
        "tokens_generated": 131_072,
        "optimizer_steps": 96,
        "trainable_parameters": 4_495_056,
    }
    sizes = {"parameters_before": 5_730_000, "parameters_after": 4_495_056}
    return (
        {key: whole[key] for key in keys}
        | spent
        | sizes
        | {"lineage": {"seed": 0, "packages": {"torch": "2.13.0"}}}
    )
