"""A copy of the project with a random model of four layers, short texts, and parameters for a short run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SMALL: dict[str, dict[str, Any]] = {
    "model": {"name": "models/tiny"},
    "calibration": {"samples": 8, "seq_len": 32},
    "select": {"layers": 1},
    "recover": {"epochs": 1, "batch": 4},
    "evaluate": {
        "max_tokens": 1024,
        "tasks": ["blimp_passive_1", "blimp_adjunct_island"],
        "limit": 2,
        "baselines": ["shortgpt"],
    },
    "speed": {
        "prompt_iterations": 2,
        "batch": 2,
        "generate_prompt": 8,
        "new_tokens": 8,
        "generate_iterations": 1,
    },
    "gate": {
        "max_perplexity_ratio_in_domain": 100,
        "max_perplexity_ratio_out_of_domain": 100,
        "max_task_mean_loss": 1,
        "max_task_loss": 1,
        "min_prompt_speedup": None,
    },
    "registry": {"name": "tiny"},
}


def make_model(folder: Path) -> None:
    """Save a random LLaMA with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(["<|end|>", *alphabet])},
            merges=[],
        )
    )
    plain.pre_tokenizer, plain.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<|end|>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_project(folder: Path) -> Path:
    """Copy the project, with short texts, a small model, and parameters for a short run."""
    for name in ("tasks", "elder", "flows", ".dvc", "data/tasks"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__", "cache", "tmp"),
        )
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("calibration", "in_domain", "held_out"):
        text = (ROOT / "data" / f"{name}.txt").read_text(encoding="utf-8")
        (folder / "data" / f"{name}.txt").write_text(text[:20_000], encoding="utf-8")
    make_model(folder / "models" / "tiny")
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in SMALL.items():
        tree[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the project."""
    return make_project(tmp_path_factory.mktemp("project"))
