"""Texts with rows and compressed ones: read by `datasets`, chats through the chat template, nulls counted."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import datasets
import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from elder.cli.app import build_app as build_library
from elder.cli.services import LIBRARY
from elder.errors import UserError
from elder.names import format_of
from elder.params import Params
from flows.cli.app import SERVICES
from tasks import prepare
from tasks.data import found_in

MODEL = Path(__file__).parents[2] / "models" / "novels-llama"
ROWS = [f"row {number} has words" for number in range(300)]
TEXT = "\n\n".join(ROWS)
CHAT = (
    "{% for one in messages %}[{{ one['role'] }}] {{ one['content'] }}"
    "{% if 'tool_calls' in one %}{{ one['tool_calls'] | length }}{% endif %}{{ '\\n' }}{% endfor %}"
)
Prepare = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the configuration and tokenizer of a bundled model, with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chatty"
    folder.mkdir()
    shutil.copy(MODEL / "config.json", folder)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def made(model: Path, tmp_path: Path) -> Prepare:
    """Make plain texts as a run does, of one source for calibration and evaluation; returns their folder."""

    def run(source: Path, name: Path = model, **calibration: Any) -> Path:
        given = {"source": str(source), "seq_len": 64, **calibration}
        texts = {"in_domain": str(source), "out_of_domain": str(source)}
        params = Params.model_validate(
            {"model": {"name": str(name)}, "calibration": given, "evaluate": texts}
        )
        for stage in ("pin", "text", "evaluation"):
            prepare.STAGES[stage](params, tmp_path / "build")
        return tmp_path / "build"

    return run


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(folder: Path, name: str) -> Path:
    path, rows = folder / name, [{"n": 1, "text": text} for text in ROWS]
    if name.endswith(".parquet"):
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    elif name.endswith((".csv", ".tsv")):
        mark = "\t" if name.endswith(".tsv") else ","
        path.write_text("\n".join([f"n{mark}text", *(f"1{mark}{one}" for one in ROWS)]))
    elif name == "rows.json":
        path.write_text(json.dumps(rows))
    elif name.endswith(".txt.gz"):
        path.write_bytes(gzip.compress(TEXT.encode()))
    else:
        plain = lines(folder / "plain", rows)
        path.write_bytes(
            gzip.compress(plain.read_bytes())
            if name.endswith(".gz")
            else plain.read_bytes()
        )
    return path


@pytest.mark.parametrize(
    "name",
    [
        "rows.jsonl",
        "rows.jsonl.gz",
        "rows.json",
        "rows.csv",
        "rows.tsv",
        "rows.parquet",
        "plain.txt.gz",
        "rows.ndjson",
        "r[1]*?.jsonl",  # a pattern to `datasets`
        "a::b.txt.gz",  # a chain of files to fsspec
    ],
)
def test_what_is_calibrated_and_judged_on_is_the_text_and_no_markup(
    name: str, made: Prepare, tmp_path: Path
) -> None:
    folder = made(write(tmp_path, name))
    for text in ("calibration", "in_domain", "out_of_domain"):
        assert (folder / f"{text}.txt").read_text() == TEXT


def test_a_null_is_counted_and_left_out(
    made: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = [{"text": text} for text in ROWS]
    rows[7]["text"] = None
    source = lines(tmp_path / "rows.jsonl", rows)
    folder = made(source)
    without = "\n\n".join(ROWS[:7] + ROWS[8:])
    assert (folder / "calibration.txt").read_text() == without
    assert (folder / "in_domain.txt").read_text() == without
    found = found_in(folder)
    assert (found["rows"], found["nulls"]) == (300, 1)
    assert found["evaluation"]["out_of_domain"]["nulls"] == 1
    assert "1 of 300 rows are null in column 'text', such as row 8" in (
        capsys.readouterr().err
    )
    for number in (
        100,
        200,
        250,
    ):  # four in three hundred are more than one in a hundred
        rows[number]["text"] = None
    lines(source, rows)
    sentence = "is null in 4 of 300 rows, the first is row 8; at most 1% may be"
    with pytest.raises(UserError, match=sentence):
        made(source)


def test_chats_go_through_the_chat_template(made: Prepare, tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]
    source = lines(tmp_path / "chats.jsonl", [{"messages": turns}] * 2)
    folder = made(source, column="messages")
    chats = "[user] Why?\n[assistant] So.\n\n\n[user] Why?\n[assistant] So.\n"
    assert (folder / "calibration.txt").read_text() == chats
    assert (folder / "in_domain.txt").read_text() == chats
    with pytest.raises(UserError, match="has no chat template"):
        made(source, MODEL, column="messages")


def test_a_chat_is_the_same_however_it_is_stored(
    made: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = {"role": "user", "content": "Why?"}
    answer = {"role": "assistant", "content": "So.", "tool_calls": None}
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
    in_parts = {"role": "user", "content": parts}
    rows = [[question, answer], [in_parts, answer], json.dumps([question, answer]), []]
    source = lines(tmp_path / "chats.jsonl", [{"messages": chat} for chat in rows])
    text = (made(source, column="messages") / "calibration.txt").read_text()
    assert text == "\n\n".join(["[user] Why?\n[assistant] So.\n"] * 3)
    assert "1 of 4 rows are null" in capsys.readouterr().err
    image = [{"role": "user", "content": [{"type": "image", "url": "x"}]}]
    lines(source, [{"messages": image}])
    with pytest.raises(UserError, match="row 1 of .* more than text, such as .*image"):
        made(source, column="messages")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.txt",
            '{"text": "x"}\n{"text": "y"}\n',
            "rows of JSON.* rename it to .jsonl",
        ),
        ("a.txt", "x\0", "holds null characters"),
        ("a.csv", "text\n1,2\n1,2,3", "cannot be read.*separated by commas in .csv"),
        ("a.csv", b"text\n\xe9", "cannot be read.*convert it to UTF-8 first"),
        (
            "a.jsonl",
            b'"one"\n"two"\n',
            "each line must be a JSON object with the column 'text'",
        ),
        ("a.jsonl", '{"body": "x", "n": 1}\n', "no column 'text'.*valid: body, n"),
        ("a.jsonl", '{"text": 3}\n', "holds int, not text or .* in row 1"),
        ("a.jsonl", '{"text": "x"}\n{oops\n', "cannot be read"),
        ("a.jsonl", "", "is empty"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.txt.gz", "no gzip", "cannot be decompressed"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(
    name: str, content: str | bytes, sentence: str, made: Prepare, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=sentence):
        made(path)


def test_an_archive_is_no_text(made: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    for names in (["a.txt", "b.txt"], ["a.jsonl"]):
        with ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, TEXT)
        with pytest.raises(UserError, match=f"archive that holds '{names[0]}'.*unpack"):
            made(path)


def test_the_commands_read_rows_or_say_what_they_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("elder.cli.options.prepare_libraries", lambda: None)
    model, text = ["evaluate", str(MODEL), "--json"], tmp_path / "plain.txt"
    text.write_text(TEXT)

    def run(services: Any, path: Path) -> Any:
        given = [*model, "--text", str(path), "--set", "evaluate.max_tokens=512"]
        return CliRunner().invoke(build_library(services), given)

    assert run(SERVICES, source).stdout == run(SERVICES, text).stdout
    marked = tmp_path / "marked.txt"
    marked.write_text(TEXT, encoding="utf-8-sig")
    assert run(SERVICES, marked).stdout == run(SERVICES, text).stdout
    refused = run(LIBRARY, source)
    assert refused.exit_code == 2
    assert "needs the pipeline's packages" in refused.stderr
    refused = run(LIBRARY, source.rename(tmp_path / "rows.txt"))
    assert refused.exit_code == 2
    assert "holds rows of JSON, not plain text" in refused.stderr


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.txt", None),
        ("a", None),
        ("a.safetensors", None),
        ("A.JSONL", "json"),
        ("a.json.zst", "json"),
        ("a.txt.xz", "text"),
        ("a.tsv", "csv"),
    ],
)
def test_what_a_name_says(name: str, found: str | None) -> None:
    assert format_of(name) == found
