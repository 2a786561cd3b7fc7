"""What YAML may hold: words keep their letters, and whatever could fill the memory or be misread is refused at once."""

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from elder.errors import UserError
from elder.params.strict_yaml import LARGEST, parse_yaml, read_yaml
from elder.settings import load_params

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("on", "on"),
        ("no", "no"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("-12", -12),
        ("0", 0),
        ("0123456", "0123456"),  # a commit's first letters, and no octal number
        ("12e4567", "12e4567"),
        ("1.5e-3", 0.0015),
        ("2024-13-45", "2024-13-45"),
        ("12:30", "12:30"),
        ("9" * 5000, "9" * 5000),
        ("[0, 11]", [0, 11]),
        ("{a: {b: off}}", {"a": {"b": "off"}}),
    ],
)
def test_what_a_text_says(text: str, value: Any) -> None:
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "select: {ratio: 0.1}\nselect: {ratio: 0.2}",
            "the key 'select' is given twice",
        ),
        ("gate: {mode: dry-run, mode: off}", "the key 'mode' is given twice"),
        ("gate: {a: 1, 'a': 2}", "the key 'a' is given twice"),
        (BOMB, "an alias .* is not allowed"),
        ("store: &a {url: x}\nregistry: *a", "an alias .* is not allowed"),
        ("store: !!int abc", "a tag .* is not allowed"),
        ("a: !!timestamp 2024-13-45", "a tag .* is not allowed"),
        ("[" * 100_000, "more than 20 levels are not allowed"),
        ("? [a]\n: 1", "unhashable key"),
        ("{" * 21 + "}" * 21, "more than 20 levels"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    started = time.monotonic()
    with pytest.raises(UserError, match=sentence) as caught:
        read_yaml(path, "parameter file", "name one")
    assert time.monotonic() - started < 5
    assert len(str(caught.value)) < 600


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with path.open("wb") as handle:
        handle.truncate(50 * LARGEST)
    with pytest.raises(UserError, match="has more than 256 KiB; name one"):
        read_yaml(path, "parameter file", "name one")


def test_a_bomb_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"{BOMB}select: {{protect: *i}}\n")
    assert len(BOMB) < 600
    code = "import sys, pathlib, elder.settings as s; s.load_params(pathlib.Path(sys.argv[1]))"
    limit = 6 * 2**30

    def within() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=within,
        check=False,
    )
    assert "UserError" in done.stderr.splitlines()[-1]
    assert "an alias (*) is not allowed" in done.stderr
    assert len(done.stderr) < 5000


def test_dumped_values_come_back_as_they_were() -> None:
    for value in (
        0.1,
        1e-7,
        12,
        "off",
        "0123",
        "12:30",
        "2024-01-01",
        None,
        True,
        [1, "no"],
    ):
        assert parse_yaml(yaml.safe_dump({"key": value})) == {"key": value}, value


@pytest.mark.parametrize("word", ["on", "off", "dry-run"])
def test_words_that_yaml_1_1_takes_for_booleans_mean_what_the_field_says(
    tmp_path: Path, word: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        f"gate: {{mode: {word}, check_loads: off}}\nenergy: {{country: NO}}\n"
    )
    made = load_params(path)
    assert (made.gate.mode, made.gate.check_loads, made.energy.country) == (
        word,
        False,
        "NO",
    )
    assert load_params(None, [f"gate.mode={word}"]).gate.mode == word
    assert (
        load_params(None, ["model.trust_remote_code=yes"]).model.trust_remote_code
        is True
    )
