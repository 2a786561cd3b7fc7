"""Names: one rule says what is an id on the Hub."""

from pathlib import Path

import pytest

from elder.errors import UserError
from elder.model.check import check_model
from elder.names import hub_id, is_hub_id, registered_name_fault, split_revision
from elder.params import Model
from elder.settings import read_params


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
    with pytest.raises(
        UserError, match=rf"registry\.name = '{name}': use letters, digits"
    ):
        read_params(None, None, {"registry.name": name})


def test_a_revision_is_split_off_unless_a_folder_has_that_name(tmp_path: Path) -> None:
    assert split_revision("gpt2@main") == ("gpt2", "main")
    assert split_revision("owner/name@a1") == ("owner/name", "a1")
    assert split_revision("gpt2") == ("gpt2", None)
    (tmp_path / "gpt2@main").mkdir()
    assert split_revision("gpt2@main") == ("gpt2@main", None)


@pytest.mark.parametrize("name", ["gpt2", "owner/name"])
def test_a_model_of_the_hub_is_asked_for_there(name: str) -> None:
    with pytest.raises(
        UserError, match=f"the configuration of '{name}' cannot be loaded"
    ):
        check_model(name, Model(name=name))  # tests have no network
