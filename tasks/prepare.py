"""The stages of dvc.yaml: from the names in params.yaml to calibration blocks and evaluation texts in build/data/.

    python -m tasks.prepare pin          which texts and tokenizer the names mean right now
    python -m tasks.prepare text         the calibration text, build/data/calibration.txt
    python -m tasks.prepare blocks       the calibration blocks, build/data/calibration.safetensors
    python -m tasks.prepare evaluation   the evaluation texts, build/data/in_domain.txt and out_of_domain.txt

Each stage writes its results by rename and gives the same bytes each time. Exit status 2: the input is wrong, and the
last line on stderr says in one sentence what to do.
"""

import argparse
import codecs
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from elder import files
from elder.data import refuse_binary, refuse_rows
from elder.errors import UserError
from elder.files import whole_file
from elder.model.check import one_sentence
from elder.names import format_of, gguf_file, split_revision
from elder.params import Params
from elder.settings import load_params
from tasks import sources
from tasks.documents import Documents, Render, chat_template, open_text

CONTEXT = 2048  # tokens of a block where nothing else limits it
CHARACTERS_PER_TOKEN = 5
SLACK = (
    4  # read this many times the text that the blocks need, so that there is a choice
)
CHUNK = 1 << 20
EVERYTHING = 1 << 62  # characters
EVALUATION = ("in_domain", "out_of_domain")


def pin(params: Params, folder: Path) -> None:
    """Write what the names of texts and tokenizer mean right now; later stages run again only if that changes."""
    pins = {
        "text": sources.pin(params.calibration),
        "tokenizer": sources.pin_tokenizer(params.model.name, params.model.revision),
        "evaluation": {
            name: sources.pin_text(getattr(params.evaluate, name))
            for name in EVALUATION
        },
    }
    for name, pinned in pins.items():
        write_json(folder / "pins" / f"{name}.json", pinned)


def text(params: Params, folder: Path) -> None:
    """Write the calibration text as UTF-8, and source.json, which says where it came from."""
    pinned = json.loads((folder / "pins" / "text.json").read_text(encoding="utf-8"))
    calibration, target = params.calibration, folder / "calibration.txt"
    if pinned["kind"] == "file" and not sources.has_rows(calibration.source):
        characters = copy_text(calibration.source, target, pinned)
    else:
        documents = Documents(calibration, pinned, chat_of(params, folder))
        characters = write_documents(target, documents, character_budget(params))
        pinned |= {
            "config": calibration.config,
            "split": calibration.split,
            "column": calibration.column,
        }
        pinned |= documents.settle()
    record = pinned | {
        "characters": characters,
        "text_sha256": sources.digest([target]),
    }
    write_json(folder / "source.json", record)


def blocks(params: Params, folder: Path) -> None:
    """Write the calibration blocks: ``ids``, (samples, seq_len), int32, and how they were made."""
    import torch
    from safetensors.torch import save_file

    from elder.data import choose_blocks
    from elder.model.tokens import first_tokens

    pinned = json.loads(
        (folder / "pins" / "tokenizer.json").read_text(encoding="utf-8")
    )
    calibration, source = params.calibration, folder / "calibration.txt"
    tokenizer, seq_len = load_tokenizer(params, pinned)
    bos = first_tokens(tokenizer, calibration.bos, params.model.name)
    ids = choose_blocks(
        source, tokenizer, calibration.samples, seq_len, calibration.seed, bos
    )
    # named where there is one: blocks without it are the same file as before there was a choice
    first = {"bos": tokenizer.convert_ids_to_tokens(list(bos))} if bos else {}
    made = first | {
        "tokenizer": pinned.get("revision") or pinned["sha256"],
        "text_sha256": sources.digest([source]),
        "samples": calibration.samples,
        "seq_len": seq_len,
        "seed": calibration.seed,
    }
    with whole_file(folder / "calibration.safetensors") as new:
        # One metadata key: safetensors writes several in an order that changes from process to process.
        save_file(
            {"ids": ids.to(torch.int32).contiguous()},
            new,
            metadata={"calibration": json.dumps(made)},
        )


def evaluation(params: Params, folder: Path) -> None:
    """Check and copy the evaluation texts; those with rows become plain text, read whole.

    What was found of each goes into texts.json.
    """
    pinned = json.loads(
        (folder / "pins" / "evaluation.json").read_text(encoding="utf-8")
    )
    for name in EVALUATION:
        source, target = getattr(params.evaluate, name), folder / f"{name}.txt"
        if not sources.has_rows(source):
            copy_text(source, target, pinned[name])
            continue
        wanted = params.calibration.model_copy(update={"source": source})
        documents = Documents(wanted, pinned[name], chat_of(params, folder))
        write_documents(target, documents, EVERYTHING)
        pinned[name] |= documents.settle()
    write_json(folder / "texts.json", pinned)


def chat_of(params: Params, folder: Path) -> Render:
    """Return the chat template of the pinned tokenizer."""

    def load() -> Any:
        pinned = json.loads(
            (folder / "pins" / "tokenizer.json").read_text(encoding="utf-8")
        )
        return load_tokenizer(params, pinned)[0]

    return chat_template(load, params.model.name)


def write_documents(target: Path, documents: Documents, budget: int) -> int:
    """Write documents with a blank line between them by rename, and return their characters.

    Args:
        target: the file.
        documents: read no further than the budget.
        budget: in characters.

    Raises:
        UserError: if more of the rows that were read are null than may be.
    """

    def pieces() -> Iterator[str]:
        yield from within_budget(documents, budget)
        documents.refuse_nulls()

    return write_text(target, pieces(), documents.name)


def load_tokenizer(params: Params, pinned: dict[str, Any]) -> tuple[Any, int]:
    """Load the pinned tokenizer and settle the block length.

    Raises:
        UserError: if transformers cannot load it.
    """
    from transformers import AutoConfig, AutoTokenizer

    from elder.model.tokens import check_vocabulary

    name = str(Path(split_revision(params.model.name)[0]).expanduser())
    seq_len = params.calibration.seq_len
    file = gguf_file(name)
    if file is not None:
        from elder.model.published.dequantise import dequantised

        name = str(dequantised(file).folder)
    options = {
        "trust_remote_code": params.model.trust_remote_code,
        "revision": pinned.get("revision"),
        "local_files_only": Path(name).is_dir(),
    }
    with one_sentence(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        config = AutoConfig.from_pretrained(name, **options)
        if seq_len == "auto":
            text_config = config.get_text_config()
            context = getattr(text_config, "max_position_embeddings", None)
            seq_len = min(CONTEXT, context or CONTEXT)
    check_vocabulary(tokenizer, config, params.model.name)
    return tokenizer, int(seq_len)


def character_budget(params: Params) -> int:
    """Return how many characters of a dataset are read: enough for the blocks, several times over."""
    seq_len = params.calibration.seq_len
    tokens = params.calibration.samples * (
        CONTEXT if seq_len == "auto" else int(seq_len)
    )
    return tokens * CHARACTERS_PER_TOKEN * SLACK


def within_budget(texts: Iterable[str], budget: int) -> Iterator[str]:
    """Yield documents with a blank line between them until the budget is used; no further one is read."""
    for index, document in enumerate(texts):
        piece = "\n\n" + document if index else document
        yield piece
        budget -= len(piece)
        if budget <= 0:
            return


def copy_text(source: str, target: Path, pinned: dict[str, Any]) -> int:
    """Copy a UTF-8 text that is not empty, byte for byte, and return its characters."""
    path = Path(source).expanduser()
    characters = write_text(target, read_utf8(path), source)
    # of a compressed one, the digest is that of the file
    read = path if format_of(source) else target
    if sources.digest([read]) != pinned["sha256"]:
        target.unlink()
        raise UserError(f"{source!r} changed while it was read; run this again")
    return characters


def read_utf8(path: Path) -> Iterator[str]:
    """Yield a text in pieces, however long it is.

    Raises:
        UserError: with the byte offset of the first byte that is not UTF-8; or if it is no text for another reason.
    """
    decoder, consumed = codecs.getincrementaldecoder("utf-8")(), 0
    with open_text(path) as handle:
        while True:
            chunk = handle.read(CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                piece = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                offset = consumed - pending + error.start
                raise UserError(
                    f"{str(path)!r} is not UTF-8: {error.reason} at byte {offset}; convert it, for example with iconv"
                ) from None
            refuse_binary(str(path), piece)
            if not consumed and piece.strip():
                refuse_rows(str(path), piece.lstrip("\ufeff"))
            yield piece
            if not chunk:
                return
            consumed += len(chunk)


def write_text(path: Path, pieces: Iterable[str], source: str) -> int:
    """Write pieces of text by rename and return their characters.

    Raises:
        UserError: if nothing but white space was written.
    """
    characters, empty = 0, True
    with whole_file(path) as new, new.open("w", encoding="utf-8", newline="") as handle:
        for piece in pieces:
            characters += handle.write(piece)
            empty = empty and not piece.strip()
        if empty:
            raise UserError(
                f"the text {source!r} is empty; it must hold at least one block of text"
            )
    return characters


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record with sorted keys by rename."""
    files.write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


STAGES: dict[str, Callable[[Params, Path], None]] = {
    "pin": pin,
    "text": text,
    "blocks": blocks,
    "evaluation": evaluation,
}


def main() -> int:
    """Run one stage and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--output", type=Path, default=Path("build/data"))
    args = parser.parse_args()
    try:
        STAGES[args.stage](load_params(args.params, []), args.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
