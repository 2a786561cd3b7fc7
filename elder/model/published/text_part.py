"""The text model inside a larger one that also sees or hears, as a causal language model of transformers' own.

Gemma 3, Mistral 3, Qwen3.5 and their like are published as one model for images and text. Their layers that generate
text are those of a family that transformers also has alone, and so is what comes out here: stock, with nothing copied.
"""

from typing import Any

import torch

from elder.errors import UserError


def text_config_of(config: Any) -> Any | None:
    """Return the configuration of the causal language model inside a larger model; None where there is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        inner = config.get_text_config(decoder=True)
    except ValueError:  # it has several
        return None
    if inner is config or type(inner) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    if getattr(inner, "is_encoder_decoder", False):
        return None
    inner._commit_hash = getattr(config, "_commit_hash", None)
    return inner


def class_of(config: Any) -> Any:
    """Return transformers' own class of a larger model, by the name in its configuration.

    Raises:
        UserError: if there is no such class.
    """
    import transformers

    name = (config.architectures or ["None"])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise UserError(
            f"transformers has no {name}, which this {type(config).__name__} asks for; use a text model of this family"
        )
    return kind


def text_part(whole: Any) -> Any:
    """Return the causal language model inside a larger model; they share their weights.

    Args:
        whole: with a decoder for text and an output embedding.

    Raises:
        UserError: if its decoder is not the one that a text model of this family has.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config: Any = text_config_of(whole.config)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    decoder = whole.get_decoder()
    model = decoder if isinstance(decoder, kind) else None
    if model is None:
        head = whole.get_output_embeddings()
        tied = head.weight is whole.get_input_embeddings().weight
        config.tie_word_embeddings = tied  # the larger configuration decides that
        with torch.device("meta"):
            model = kind(config)
        if type(model.base_model) is not type(decoder):
            raise UserError(
                f"the text part of a {type(whole).__name__} is no {kind.__name__}; use a text model of this family"
            )
        setattr(model, model.base_model_prefix, decoder)
        model.set_output_embeddings(head)
        model.tie_weights()
    model.generation_config = whole.generation_config
    return model
