"""What a compression starts from: the model, and the text that layers are judged and trained on."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, ByteSize, Field, field_validator

from elder.params.section import Auto, Section, long_enough, place

SIZE = re.compile(r"\s*\d*\.?\d+\s*[A-Za-z]*\s*", re.ASCII)


def whole_size(value: object) -> object:
    """Return what is to be read as bytes; pydantic alone reads the 1 of ``1,5GB``, and leaves the rest out.

    Raises:
        ValueError: if it is no number with a unit.
    """
    if isinstance(value, str) and not SIZE.fullmatch(value):
        raise ValueError("give a number and a unit, such as 1.5GB")
    return value


class Model(Section):
    """Which model is compressed, and how it is loaded."""

    name: str = Field(
        "models/novels-llama",
        description="folder, GGUF file, Hub id, s3:// prefix or models:/name@alias",
    )
    revision: str | None = Field(
        None, description="Hub revision: a commit, tag or branch"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: as the checkpoint"
    )
    max_memory: Annotated[ByteSize, BeforeValidator(whole_size)] | None = Field(
        None,
        gt=0,
        description="such as 24GB: the plan makes training fit; null: as it is set",
    )
    part: Literal["whole", "text"] = Field(
        "whole", description="text: the text model inside one that also sees or hears"
    )
    adapter: Literal["refuse", "merge", "ignore"] = Field(
        "refuse",
        description="an adapter there, alone or beside weights: merge it, or leave it out",
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model"
    )
    _place = field_validator("name")(place)


class Calibration(Section):
    """The text that layers are judged and trained on."""

    source: str = Field(
        "data/calibration.txt",
        description="UTF-8 text, .jsonl, .csv or .parquet, folder saved by datasets, or Hub dataset",
    )
    config: str | None = Field(
        None, description="configuration of a Hub dataset, such as wikitext-2-raw-v1"
    )
    split: str = Field("train", description="split of a dataset")
    column: str = Field(
        "text",
        description="column of its rows, also of the evaluation's: text, or messages",
    )
    revision: str | None = Field(
        None, description="Hub revision of the dataset; pinned and recorded"
    )
    samples: int = Field(128, ge=2, description="calibration blocks")
    seq_len: int | Auto = Field(
        "auto",
        description="tokens in a block; auto: 2048, or the model's context if shorter",
    )
    bos: bool | Auto = Field(
        "auto",
        description="begin each block with the beginning-of-text token; auto: as the tokenizer does",
    )
    seed: int = Field(
        0, ge=0, description="seed of the choice of blocks and of all training"
    )

    _place = field_validator("source")(place)

    _long_enough = field_validator("seq_len")(long_enough)
