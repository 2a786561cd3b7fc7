"""What a file may be called whose name comes from a store, a manifest, an index or a record."""

import pytest

from elder.names import LONGEST_SHOWN, path_fault, path_faults, shown

BAD = [
    ("", "is empty"),
    ("/etc/passwd", "leads outside"),
    ("//home/x/.ssh/authorized_keys", "leads outside"),
    ("..", "leads outside"),
    ("../x", "leads outside"),
    ("a/../../x", "leads outside"),
    ("C:/x", "leads outside"),
    ("c:x", "leads outside"),
    ("a//b", "has a part that is empty or '.'"),
    ("a/", "has a part that is empty or '.'"),
    (".", "has a part that is empty or '.'"),
    ("./a", "has a part that is empty or '.'"),
    ("..\\x", "has a backslash"),
    ("a\0b", "has a character that cannot be seen"),
    ("a\nb", "has a character that cannot be seen"),
    ("a\x1b[2Jb", "has a character that cannot be seen"),
    (
        "gpj.\u202etxt",
        "has a character that cannot be seen",
    ),  # shown from right to left
    ("a\u200bb", "has a character that cannot be seen"),
    ("\udcff", "has a character that cannot be seen"),  # no text: a byte of a disk
    ("a" * 256, "has a part longer than 255 bytes"),
    ("é" * 128, "has a part longer than 255 bytes"),
    ("a/" * 512 + "b", "is longer than 1024 bytes"),
]
GOOD = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "sub/folder/..hidden..",
    "...",
    ".cache/x",
    "é 日本.txt",
    "a" * 255,
]


@pytest.mark.parametrize(("name", "fault"), BAD)
def test_bad_names(name: str, fault: str) -> None:
    assert path_fault(name) == fault
    assert path_faults([name, "config.json"]) == {name: fault}


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name: str) -> None:
    assert path_fault(name) is None


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (["Config.json", "config.json"], "config.json"),
        (["A/x", "a/y"], "a/y"),
        (["caf\u00e9", "cafe\u0301"], "caf\u00e9"),
        (["STRASSE", "stra\u00dfe"], "stra\u00dfe"),
    ],
)
def test_names_that_a_system_takes_for_one_another(
    names: list[str], wrong: str
) -> None:
    (name,) = path_faults(names)
    assert name == wrong
    assert "in case or Unicode form alone" in path_faults(names)[name]


def test_a_file_is_no_folder() -> None:
    assert path_faults(["a", "a/b"]) == {"a/b": "lies below 'a', which is a file"}


def test_names_side_by_side() -> None:
    assert path_faults(["a/x", "a/y", "b", "ab", "a.b/x"]) == {}


def test_a_foreign_name_is_shown_escaped_and_short() -> None:
    assert shown("a\x1b[2J\n\udcff") == r"'a\x1b[2J\n\udcff'"
    assert shown("x" * 5000) == repr("x" * LONGEST_SHOWN + "...")
