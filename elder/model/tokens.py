"""What texts begin with, such as Gemma's ``<bos>``, and what a model must know of a tokenizer's tokens."""

from collections.abc import Mapping
from typing import Any

from elder.errors import UserError
from elder.model.check import one_sentence
from elder.params import Auto

Bos = bool | Auto  # `calibration.bos`
PROBE = "a"  # any text: what stands before its tokens is what begins every text


def first_tokens(tokenizer: Any, wanted: Bos, name: str) -> tuple[int, ...]:
    """Return the ids that each block begins with: those of the beginning-of-text token, mostly one or none.

    Many models saw every text begin with it, and are out of their wits without: a first token takes up the attention
    that finds nothing (arXiv 2309.17453).

    Args:
        tokenizer: any tokenizer of transformers.
        wanted: ``calibration.bos``. Auto: what the tokenizer does by itself where it encodes a text with its special
            tokens; what it puts behind the text is left out, since a block is no whole text. True: that, or else its
            beginning-of-text token. False: none.
        name: of the model, for the refusal.

    Raises:
        UserError: if the token is wanted, and the tokenizer has none.
    """
    if wanted is False:
        return ()
    own = _before(tokenizer)
    if own or wanted == "auto":
        return own
    if tokenizer.bos_token_id is None:
        raise UserError(
            f"calibration.bos is true, and the tokenizer of {name!r} has no beginning-of-text token; set it to auto"
        )
    return (int(tokenizer.bos_token_id),)


def load_tokenizer(
    source: str, config: Any, name: str, common: Mapping[str, Any]
) -> Any:
    """Load the tokenizer of a model, which must know no token that the model does not know.

    Args:
        source: a folder, or a Hub id.
        config: the model's configuration.
        name: of the model, as the user gave it.
        common: what transformers is told of any file there, such as its revision.

    Raises:
        UserError: if it cannot be loaded; as `check_vocabulary`.
    """
    from transformers import AutoTokenizer

    with one_sentence(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            **common,
        )
    check_vocabulary(
        tokenizer,
        config,
        name,
    )
    return tokenizer


def check_vocabulary(tokenizer: Any, config: Any, name: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for.

    Special tokens that no text needs are let be, such as Gemma 3's ``<image_soft_token>``, which its text models lack:
    should a text hold one, `elder.model.load.check_tokens` refuses that text.

    Args:
        tokenizer: any tokenizer of transformers.
        config: the model's configuration.
        name: of the model, for the refusal.

    Raises:
        UserError: naming the first such token, and how many tokens both know.
    """
    known = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if known is None:
        return
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    needed |= {tokenizer.pad_token_id, tokenizer.unk_token_id}
    added = tokenizer.added_tokens_decoder
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        spare = index in added and added[index].special and index not in needed
        if index >= known and not spare:
            raise UserError(
                f"the tokenizer of {name!r} has {len(tokenizer)} tokens and the model's embedding {known}: token "
                f"{token!r} ({index}) has none; save the tokenizer that the model was trained with, or resize the "
                "model with resize_token_embeddings"
            )


def _before(tokenizer: Any) -> tuple[int, ...]:
    """Return what the tokenizer puts before a text."""
    plain = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()
