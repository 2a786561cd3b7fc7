"""Running a model on blocks of tokens: losses, mixed precision, sampling and determinism, in one place."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from elder.device import computes_on_cpu, device_of_model
from elder.model.head import by_position, logits_of_states, states_of
from elder.model.layers import LayerControl, find_layers
from elder.parallel.ranks import count, share
from elder.parallel.shard import take_apart


def seed_everything(seed: int) -> None:
    """Seed torch and ask for deterministic kernels, so that one seed gives one result on one machine."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # it would write over each new tensor first: a twentieth of a GPU's step, to find who reads what nobody wrote
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def mixed_precision(model: Any, compute: torch.dtype) -> AbstractContextManager:
    """Compute in ``compute`` where the weights are kept in another dtype.

    Adapters are, beside weights of 16 bits; a CPU takes them as they are.
    """
    device = device_of_model(model)
    weights = {next(model.parameters()).dtype}
    if not computes_on_cpu(device):
        weights |= {one.dtype for one in model.parameters() if one.requires_grad}
    if weights == {compute} or compute == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=compute)


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a batch, (batch, tokens, vocabulary)."""
    return model(input_ids=ids.to(device_of_model(model)), use_cache=False).logits


def observed_states(
    model: Any, ids: torch.Tensor, indices: Iterable[int]
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return what enters the head, and what entered and left some of the layers: (batch, tokens, hidden), in order.

    The layers are watched during the forward pass alone: gradient checkpointing, which may run a layer once more in the
    backward pass, shows nothing twice.
    """
    layers = find_layers(model)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with LayerControl(
        nn.ModuleList([layers[index] for index in sorted(indices)])
    ) as control:
        control.observe = lambda _, entering, leaving: seen.append((entering, leaving))
        states = states_of(model, ids)
    return states, seen


def next_token_losses(
    model: Any, ids: torch.Tensor, given: int = 1, states: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the next-token cross-entropy of each block in nats: the mean over its positions, (batch,).

    Args:
        model: a causal language model.
        ids: (batch, tokens) int64.
        given: tokens at the beginning of each block that are not to be predicted, at least 1.
        states: what enters the head, (batch, tokens, hidden), where that is known already.
    """

    def loss(some: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = logits_of_states(model, some).float()
        return F.cross_entropy(logits, wanted, reduction="none")

    if states is None:
        states = states_of(model, ids)
    before = states[:, given - 1 : -1]
    targets = ids[:, given:].to(before.device)
    losses = by_position(model, loss, before.flatten(0, 1), targets.flatten())
    return losses.view(targets.shape).mean(dim=1)


@torch.no_grad()
def block_losses(
    model: Any,
    blocks: torch.Tensor,
    batch: int,
    compute: torch.dtype | None = None,
    given: int = 1,
) -> torch.Tensor:
    """Return the next-token loss of each block, (blocks,) float64 on the CPU, without gradients.

    Batches are shared out among processes.

    Args:
        model: is set to eval mode.
        blocks: token ids, (blocks, tokens) int64.
        batch: blocks in a batch.
        compute: dtype to compute in; None: that of the weights.
        given: see `next_token_losses`.
    """
    model.eval()

    def losses_of(ids: torch.Tensor) -> torch.Tensor:
        return next_token_losses(model, ids, given).double().cpu()

    with mixed_precision(model, compute or next(model.parameters()).dtype):
        losses = torch.cat(share(blocks.split(batch), losses_of))
    take_apart(model)
    return losses


@torch.no_grad()
def continue_texts(
    model: Any,
    prompts: torch.Tensor,
    length: int,
    temperature: float,
    by_sums: bool = True,
) -> torch.Tensor:
    """Write on from the whole vocabulary until each row has ``length`` tokens; no text ends before.

    Args:
        model: in eval mode.
        prompts: (rows, tokens) int64, all of one length.
        length: tokens of each row afterwards.
        temperature: of sampling; 0: always the likeliest token.
        by_sums: a CPU draws as `Draw` does; False: as ``torch.multinomial``.

    Returns:
        (rows, length) int64 on the CPU, the prompts included.
    """
    from transformers import GenerationConfig

    device = device_of_model(model)
    prompts = prompts.to(device)
    more = length - prompts.shape[1]
    fast = device.type == "cpu" and by_sums
    draws = [Draw(temperature)] if fast and temperature else []
    plain = GenerationConfig(
        do_sample=temperature > 0 and not draws,
        temperature=temperature or 1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        max_new_tokens=more,
        min_new_tokens=more,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,
        remove_invalid_values=not draws,  # sampling from a model that is broken would end a GPU's process
    )
    with packed_queries() if fast else nullcontext():
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=plain,
            logits_processor=draws,
        ).cpu()


class Draw:
    """Draws each row's next token, and leaves greedy decoding no other; in place of ``torch.multinomial``.

    On a CPU that one takes a random number for each token of the vocabulary, which costs more than all of the logits;
    here one for each row says where in the sums of all shares its token lies.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return (rows, vocabulary): 1 for the token that was drawn, 0 for all others."""
        shares = (scores.float() / self.temperature).softmax(dim=-1)
        sums = shares.cumsum(dim=-1)
        places = torch.rand(len(sums), 1) * sums[:, -1:]
        drawn = torch.searchsorted(sums, places, right=True)
        drawn.clamp_(max=sums.shape[-1] - 1)  # where a model is broken
        return torch.zeros_like(scores).scatter_(1, drawn, 1.0)


@contextmanager
def packed_queries() -> Iterator[None]:
    """Let the query heads that share keys attend together, for a while, where one token is looked at.

    So transformers does by itself where there is a mask; without one torch's kernel for CPUs takes several times as
    long. A mask that masks nothing makes it do so.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **more: Any,
    ) -> Any:
        shared = getattr(module, "num_key_value_groups", 1) > 1
        if attention_mask is None and shared and query.shape[2] == 1:
            attention_mask = query.new_zeros(1, 1, 1, key.shape[2])
        return plain(module, query, key, value, attention_mask, **more)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


class _ReachedError(Exception):
    """The last layer that was asked for is through: the rest of the model need not run."""


def run_layers(model: Any, ids: torch.Tensor, last: int | None = None) -> None:
    """Run a batch through decoder layers alone, for what a `LayerControl` observes: the head, for one, never runs.

    The model's own forward pass runs and is broken off, so that what leads up to the layers is the family's own.

    Args:
        model: a causal language model.
        ids: (batch, tokens) int64.
        last: the layer after which nothing is computed; None: the model's last.
    """
    layers = find_layers(model)
    if (
        count() > 1
    ):  # what is broken off would leave the parts of a divided model put together
        states_of(model, ids)
        return

    def stop(*_: Any) -> None:
        raise _ReachedError

    end = layers[len(layers) - 1 if last is None else last]
    hook = end.register_forward_hook(stop, prepend=True)
    try:
        logits_of(model, ids)
    except _ReachedError:
        pass
    finally:
        hook.remove()


def cache_bytes(cache: Any) -> int:
    """Return the bytes of all tensors that the layers of a cache of transformers hold."""
    total = 0
    for layer in getattr(cache, "layers", ()):
        for value in vars(layer).values():
            if isinstance(value, torch.Tensor):
                total += value.nbytes
    return total
