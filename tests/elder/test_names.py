"""Names: one rule says what is an id on the Hub, and one what a file of others may be called."""

from pathlib import Path

import pytest

from elder.cli.services import LIBRARY, Services
from elder.errors import UserError
from elder.model.check import check_model
from elder.names import (
    LONGEST_SHOWN,
    gguf_file,
    hub_id,
    is_hub_id,
    path_fault,
    path_faults,
    registered_name_fault,
    shown,
    split_revision,
)
from elder.params import Model
from elder.settings import read_params, validate


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "word").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["gpt2", "Wikitext", "a", "meta-llama/Llama-2-7b-hf", "o_w.n-er/n_a.m-e", "0/1"],
)
def test_ids_of_the_hub(name: str) -> None:
    assert is_hub_id(name)
    assert hub_id(name) == name
    assert hub_id(f"{name}@v1.0") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "word",  # a folder that is here
        "models/tiny",
        "models/absent",  # in a folder that is here: a mistyped path
        "./gpt2",
        "../x",
        "~/x",
        "/srv/x",
        "a/b/c",
        "owner/",
        "-owner/name",
        "a--b/c",
        "a..b",
        "two words",
        "s3://bucket/x",
        "models:/novels@champion",
    ],
)
def test_names_that_are_no_ids_of_the_hub(name: str) -> None:
    assert not is_hub_id(name)
    assert hub_id(name) is None


def test_what_a_registered_model_may_be_called() -> None:
    for name in ("work", "data", "3", "a.b_c-D", "x" * 200):
        assert registered_name_fault(name) is None
    for name in ("", "org/model", "my model", "a:b", ".hidden", "-x", "modèle", "a\n"):
        assert registered_name_fault(name) is not None
    assert registered_name_fault("x" * 201) == "give at most 200 characters"


@pytest.mark.parametrize("name", ["org/model", "my model", ""])
def test_a_name_that_cannot_be_registered_is_refused_where_it_is_read(
    name: str,
) -> None:
    with pytest.raises(UserError, match=r"registry\.name.*: use letters, digits"):
        read_params(None, None, {"registry.name": name})


def test_a_revision_is_split_off_unless_a_folder_has_that_name(tmp_path: Path) -> None:
    assert split_revision("gpt2@main") == ("gpt2", "main")
    assert split_revision("owner/name@a1") == ("owner/name", "a1")
    assert split_revision("gpt2") == ("gpt2", None)
    (tmp_path / "gpt2@main").mkdir()
    assert split_revision("gpt2@main") == ("gpt2@main", None)


def test_only_a_model_of_the_hub_has_a_revision(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match=r"'own' is on this machine .* leave it out"):
        split_revision("own@main")
    with pytest.raises(UserError, match="'@main' names a revision of no model"):
        split_revision("@main")
    services = Services(lambda name, _: name, lambda *_: tmp_path, LIBRARY.measuring)
    wanted = validate({"model": {"name": "own", "revision": "main"}})
    with pytest.raises(UserError, match="'own' is on this machine and has no revision"):
        services.with_local_model(wanted)


@pytest.mark.parametrize("name", ["gpt2", "owner/name"])
def test_a_model_of_the_hub_is_asked_for_there(name: str) -> None:
    with pytest.raises(
        UserError, match=f"'{name}' is on the Hub .* the cache has no whole copy"
    ):
        check_model(name, Model(name=name))  # tests have no network


# What a file may be called whose name comes from a store, a manifest, an index or a record.
BAD_FILES = [
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
GOOD_FILES = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "sub/folder/..hidden..",
    "...",
    ".cache/x",
    "é 日本.txt",
    "a" * 255,
]


@pytest.mark.parametrize(("name", "fault"), BAD_FILES)
def test_bad_file_names(name: str, fault: str) -> None:
    assert path_fault(name) == fault
    assert path_faults([name, "config.json"]) == {name: fault}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_good_file_names(name: str) -> None:
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


def test_a_folder_is_no_gguf_file_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "models.gguf").mkdir()
    assert gguf_file(str(tmp_path)) is None
    (tmp_path / "tiny.gguf").touch()
    assert gguf_file(str(tmp_path)) == tmp_path / "tiny.gguf"


def test_a_text_is_made_only_where_one_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.parquet").touch()
    (tmp_path / "build").touch()
    with pytest.raises(
        UserError, match=r"'build/texts' below this folder, which .* write"
    ):
        LIBRARY.plain_text("rows.parquet", validate({}))
