"""Does an engine say what transformers says? The same prompts to both: logits, greedy tokens, and how a text is cut."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from elder.data import evaluation_blocks
from elder.engines import llama_cpp
from elder.engines.llama_cpp import Answer, Request
from elder.errors import UserError
from elder.model.forward import continue_texts, logits_of
from elder.model.load import Loaded, context_length
from elder.record import EngineTrial

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 32, 16
SPREAD = 64  # times the prompts, that they are taken from


def try_engines(
    names: tuple[str, ...], loaded: Loaded, folder: Path, text: Path, work: Path
) -> list[EngineTrial]:
    """Try each engine on a saved model; what an engine refuses is its trial's fault."""
    return [ENGINES[name](loaded, folder, text, work) for name in names]


def try_llama_cpp(loaded: Loaded, folder: Path, text: Path, work: Path) -> EngineTrial:
    """Write a model as GGUF in its own number format, and compare what llama.cpp says with what transformers says.

    Args:
        loaded: the model, as transformers read it.
        folder: where it was saved.
        text: UTF-8 text that the prompts are taken from, at even distances.
        work: folder for the GGUF file, which is deleted again.
    """
    name, kind = llama_cpp.NAME, llama_cpp.own_type(folder)
    with tempfile.TemporaryDirectory(dir=work, prefix="gguf-") as place:
        file = Path(place) / "model.gguf"
        try:
            llama_cpp.export_gguf(folder, file, kind)
            trial = compare(loaded, llama_cpp.ask, file, text)
        except UserError as error:
            trial = EngineTrial(engine=name, fault=str(error))
    return trial.model_copy(update={"format": f"gguf {kind}"})


def compare(
    loaded: Loaded, ask: Callable[[Request], Answer], file: Path, text: Path
) -> EngineTrial:
    """Compare what an engine says of a model with what transformers says.

    Args:
        loaded: the model, as transformers read it.
        ask: asks the engine.
        file: what the engine reads.
        text: UTF-8 text that the prompts are taken from, at even distances.

    Returns:
        ``divergence``: mean Kullback-Leibler divergence of the engine's next token from transformers', in nats;
        ``largest_difference`` of log-probabilities over prompts and vocabulary; ``same_tokens`` of ``tokens`` that
        greedy generation gives; ``same_ids``: whether both cut the prompts' text alike.

    Raises:
        UserError: the engine fails.
    """
    prompts = _prompts(loaded, text)
    length = prompts.shape[1]
    with torch.inference_mode():
        last = logits_of(loaded.model, prompts)[:, -1].float().log_softmax(-1).cpu()
    written = continue_texts(loaded.model, prompts, length + NEW_TOKENS, 0)
    own = written[:, length:].tolist()
    cut = loaded.tokenizer.decode(prompts[0, len(loaded.bos) :].tolist())
    asked = prompts.tolist(), NEW_TOKENS, last.shape[1], torch.get_num_threads()
    answer = ask(Request(str(file), cut, *asked))
    divergence, largest, same = 0.0, 0.0, 0
    for expected, tokens, said in zip(last, own, answer.said, strict=True):
        known = torch.tensor(list(said.first))
        off = expected[known] - torch.tensor(list(said.first.values()))
        divergence += (expected[known].exp() * off).sum().item() / len(own)
        largest = max(largest, off.abs().max().item())
        same += sum(a == b for a, b in zip(tokens, said.ids, strict=True))
    own_ids = loaded.tokenizer(cut, add_special_tokens=False)["input_ids"]
    return EngineTrial(
        engine=llama_cpp.NAME,
        divergence=divergence,
        largest_difference=largest,
        same_tokens=same,
        tokens=len(own) * NEW_TOKENS,
        same_ids=answer.text == own_ids,
    )


def _prompts(loaded: Loaded, text: Path) -> torch.Tensor:
    """Return prompts of (rows, tokens), shorter where the context is short."""
    context = context_length(loaded.model) or PROMPT_TOKENS + NEW_TOKENS
    length = min(PROMPT_TOKENS, context - NEW_TOKENS)
    enough = length * PROMPTS * SPREAD
    blocks = evaluation_blocks(text, loaded.tokenizer, length, enough, loaded.bos)
    return blocks[:: max(1, len(blocks) // PROMPTS)][:PROMPTS]


ENGINES: dict[str, Callable[[Loaded, Path, Path, Path], EngineTrial]] = {
    llama_cpp.NAME: try_llama_cpp
}
