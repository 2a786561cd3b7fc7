"""Train a small causal language model on a folder of plain-text books; this made the bundled reference model.

    python models/train.py --text BOOKS --config models/novels-llama/train.json --output /tmp/novels-llama

The same command resumes from the last checkpoint after any interruption, on a CPU or a GPU. Matrices are trained with
Muon and everything else with AdamW; the learning rate warms up, stays flat, then decays linearly to zero, so a run can
be given more steps at any time before its decay has begun. The order of the data depends on seed and step alone.
"""

import argparse
import hashlib
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"


def read_books(folder: Path, held_out: list[str], reserve: float) -> dict[str, str]:
    """Return {name: text}, without the held-out books and without the last `reserve` share of each other one."""
    books = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("*.txt"))
    }
    missing = set(held_out) - set(books)
    if missing:
        raise SystemExit(
            f"{folder} has no {sorted(missing)}: these are named as held out, so they must be there"
        )
    return {
        name: text[: int(len(text) * (1 - reserve))]
        for name, text in books.items()
        if name not in held_out
    }


def train_tokenizer(
    books: dict[str, str], vocab_size: int, context: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the training text only."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        books.values(), vocab_size=vocab_size, special_tokens=[END], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=context,
    )


def batch_at(
    tokens: torch.Tensor, step: int, batch: int, context: int, seed: int
) -> torch.Tensor:
    """Return the (batch, context) blocks of one step: every epoch shifts the blocks and shuffles them anew."""
    per_epoch = (len(tokens) - context) // context // batch
    epoch, index = divmod(step, per_epoch)
    rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shift = int(torch.randint(context, (1,), generator=rng))
    order = torch.randperm((len(tokens) - shift) // context, generator=rng)
    starts = order[index * batch : (index + 1) * batch] * context + shift
    return torch.stack(
        [tokens[start : start + context] for start in starts.tolist()]
    ).long()


def next_token_loss(
    model, ids: torch.Tensor, autocast: torch.dtype | None
) -> torch.Tensor:
    """Return the mean next-token cross-entropy over all positions of (batch, context) ids."""
    with torch.autocast(ids.device.type, dtype=autocast, enabled=autocast is not None):
        logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def perplexity(
    model,
    tokens: torch.Tensor,
    context: int,
    device,
    autocast,
    blocks: int | None = None,
) -> float:
    """Return the perplexity in separate blocks of `context` tokens, weighting each block the same."""
    model.eval()
    rows = tokens[: len(tokens) // context * context].view(-1, context)[:blocks].long()
    losses = [
        next_token_loss(model, chunk.to(device), autocast).item() * len(chunk)
        for chunk in rows.split(16)
    ]
    model.train()
    return math.exp(sum(losses) / len(rows))


def make_optimizers(model, recipe: dict) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers and AdamW for embeddings and norms."""
    embeddings = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
    }
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim == 2 and id(p) not in embeddings]
    others = [p for p in parameters if p.ndim != 2 or id(p) in embeddings]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe["muon_lr"],
            weight_decay=recipe["weight_decay"],
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            others, lr=recipe["adam_lr"], betas=(0.9, 0.95), weight_decay=0.0
        ),
    ]


def rate(step: int, steps: int, warmup: int, decay: float) -> float:
    """Return the factor on the learning rate: linear warm-up, flat, linear decay over the last `decay` of the steps."""
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1, round(steps * decay)))


def save_checkpoint(folder: Path, step: int, model, optimizers, log: list) -> None:
    """Write model, optimizer state and log by rename, so that an interruption leaves the last checkpoint whole."""
    tensors = {
        f"model.{k}": v
        for k, v in model.state_dict().items()
        if k != "lm_head.weight" or not tied(model)
    }
    meta = {"step": str(step), "log": json.dumps(log)}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{i}.{j}.{k}": torch.as_tensor(v).contiguous()
                for k, v in state.items()
            }
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        folder / "checkpoint.new",
        metadata=meta,
    )
    (folder / "checkpoint.new").rename(folder / "checkpoint.safetensors")


def load_checkpoint(folder: Path, model, optimizers) -> tuple[int, list]:
    """Restore what `save_checkpoint` wrote; return the step to go on from and the log so far."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0, []
    tensors = load_file(path)
    model.load_state_dict(
        {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False
    )
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, j, name = key.split(".", 3)
                state.setdefault(int(j), {})[name] = value
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    with safe_open(path, "pt") as handle:
        meta = handle.metadata()
    return int(meta["step"]), json.loads(meta["log"])


def tied(model) -> bool:
    """Say whether input and output embedding are one tensor."""
    return bool(model.config.tie_word_embeddings)


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", type=Path, required=True, help="folder of UTF-8 .txt books"
    )
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help="JSON with the sections model, data and recipe",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder for checkpoint, log and the finished model",
    )
    parser.add_argument("--steps", type=int, help="overrides recipe.steps")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    args = parser.parse_args()
    config = json.loads(args.config.read_text())
    data, recipe = config["data"], config["recipe"]
    steps, context, seed = (
        args.steps or recipe["steps"],
        data["context"],
        recipe["seed"],
    )
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)

    books = read_books(args.text, data["held_out"], data["reserve"])
    if (args.output / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.output)
    else:
        tokenizer = train_tokenizer(books, data["vocab_size"], context)
        tokenizer.save_pretrained(args.output)
    tokenizer.model_max_length = int(1e12)  # whole books are encoded at once, then cut
    train = torch.cat(
        [
            torch.tensor(tokenizer.encode(text) + [tokenizer.eos_token_id])
            for text in books.values()
        ]
    )
    held = torch.tensor(
        tokenizer.encode(
            (args.text / f"{data['evaluate']}.txt").read_text(encoding="utf-8")
        )
    )

    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            vocab_size=len(tokenizer),
            max_position_embeddings=context,
            **config["model"],
        ),
        dtype=torch.float32,
    ).to(args.device)
    optimizers = make_optimizers(model, recipe)
    start, log = load_checkpoint(args.output, model, optimizers)
    base = [
        [group["lr"] for group in opt.param_groups]
        for opt in make_optimizers(model, recipe)
    ]
    autocast = torch.bfloat16
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train):,} tokens, from step {start}",
        flush=True,
    )

    began, last_saved, batch = time.time(), time.time(), recipe["batch"]
    model.train()
    for step in range(start, steps):
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * rate(step, steps, recipe["warmup"], recipe["decay"])
        ids = batch_at(train, step, batch, context, seed).to(args.device)
        loss = next_token_loss(model, ids, autocast)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            speed = (step + 1 - start) * batch * context / (time.time() - began)
            print(
                f"step {step} loss {loss.item():.3f} {speed:,.0f} tokens/s", flush=True
            )
        if (step + 1) % recipe["evaluate_every"] == 0 or step + 1 == steps:
            blocks = None if step + 1 == steps else 128
            value = perplexity(model, held, context, args.device, autocast, blocks)
            log.append(
                {
                    "step": step + 1,
                    "tokens": (step + 1) * batch * context,
                    "loss": round(loss.item(), 4),
                    "perplexity": round(value, 3),
                    "blocks": blocks or "all",
                }
            )
            print(json.dumps(log[-1]), flush=True)
        if time.time() - last_saved > 180 or step + 1 == steps:
            save_checkpoint(args.output, step + 1, model, optimizers, log)
            last_saved = time.time()

    model.to(torch.bfloat16).save_pretrained(args.output / "model")
    tokenizer.model_max_length = context
    tokenizer.save_pretrained(args.output / "model")
    record = {
        "config": config,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "log": log,
        "device": args.device,
        "torch": torch.__version__,
        "text_sha256": {
            name: hashlib.sha256(text.encode()).hexdigest()
            for name, text in books.items()
        },
    }
    (args.output / "model" / "training.json").write_text(
        json.dumps(record, indent=1) + "\n"
    )
    (args.output / "model" / "README.md").write_text(card(record))


def card(record: dict) -> str:
    """Return the model card, in the Hub's format, from the record of the training."""
    data, recipe, shape = (record["config"][key] for key in ("data", "recipe", "model"))
    curve = "\n".join(
        f"| {point['step']} | {point['tokens'] / 1e6:.1f} M | {point['perplexity']:.2f} |"
        for point in record["log"]
    )
    books = ", ".join(sorted(record["text_sha256"]))
    left_out = " and ".join(f"`{name}`" for name in data["held_out"])
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [{shape["model_type"]}, small, reference]
---
# A small {shape["model_type"]} model of novels

A reference model to try layer removal on: {shape["num_hidden_layers"]} layers of width {shape["hidden_size"]},
{record["parameters"]:,} parameters, byte-level BPE of {data["vocab_size"]:,}, blocks of {data["context"]}
tokens, bfloat16. It is trained for this purpose alone, and writes the English of old novels, badly.

**Perplexity {record["log"][-1]["perplexity"]:.2f}** on the whole of `{data["evaluate"]}`, which it has never seen, in
separate blocks of {data["context"]} tokens.

## Data
Novels in the public domain, from Project Gutenberg:
{books}.

The last {data["reserve"]:.0%} of each was left out, and so were, as a whole, {left_out}.
`training.json` has the sha256 of each text.

## Training
`models/train.py` with `train.json`: {record["steps"]} steps of {recipe["batch"]} blocks,
{record["log"][-1]["tokens"]:,} tokens, seed {recipe["seed"]}, on {record["device"]} with torch {record["torch"]},
bfloat16 autocast. Muon at {recipe["muon_lr"]} for the matrices, AdamW at {recipe["adam_lr"]} for embeddings and norms,
weight decay {recipe["weight_decay"]}, {recipe["warmup"]} steps of warm-up, linear decay over the last
{recipe["decay"]:.0%}.

| step | tokens | perplexity (the first 128 blocks; at the end, all) |
| ---: | ---: | ---: |
{curve}

## Licence
Weights: Apache-2.0. The text is in the public domain.
"""


if __name__ == "__main__":
    main()
