"""Parameters: what may be set, how, and what a fault says."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from elder.errors import UserError, nearest
from elder.params import Params
from elder.settings import load_params, read_params, validate


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("select.ration=0.3", "select.ration: unknown key, did you mean 'ratio'?"),
        ("selcet.ratio=0.3", "selcet: unknown key, did you mean 'select'?"),
        ("recover.lrr=1", "recover.lrr: unknown key, did you mean 'lr'?"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_params(None, [override])
    assert sentence in str(caught.value)


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "select: {ratio: 1, elder: {place: middle}, protcet: [0]}\ngate: {mode: maybe}\nmodle: {}\n"
    )
    with pytest.raises(UserError, match=r"5 fault\(s\)") as caught:
        load_params(path)
    lines = str(caught.value).splitlines()[1:]
    keys = [
        "select.ratio",
        "select.elder.place",
        "select.protcet",
        "gate.mode",
        "modle",
    ]
    assert [any(line.strip().startswith(key) for line in lines) for key in keys] == [
        True
    ] * 5
    assert "'residual' or 'output'" in str(caught.value)


@pytest.mark.parametrize(
    "ratio", ["nan", ".nan", "0", "1", "-0.25", "inf", "-.inf", "quarter"]
)
def test_a_ratio_must_be_a_share(ratio: str) -> None:
    with pytest.raises(UserError, match=r"select\.ratio = "):
        load_params(None, [f"select.ratio={ratio}"])


@pytest.mark.parametrize("ratio", [float("nan"), 0.0, 1.0, -0.5])
def test_so_must_one_from_an_option(ratio: float) -> None:
    with pytest.raises(UserError, match=r"select\.ratio = "):
        load_params(None, None, {"select.ratio": ratio})


@pytest.mark.parametrize("name", ["", "\0"])
@pytest.mark.parametrize("key", ["model.name", "calibration.source"])
def test_a_name_must_name_something(name: str, key: str) -> None:
    """An empty one, of a variable that is not set, meant the present folder."""
    with pytest.raises(UserError, match=f"{key}.* should name something"):
        load_params(None, None, {key: name})


def test_values_are_read_as_yaml() -> None:
    made = load_params(
        None,
        [
            "select.protect=[0, 11]",
            "select.elder.lambda1=1e-3",
            "evaluate.limit=null",
            "recover.lr=auto",
            "model.revision=123456",
            "gate.check_generation=false",
            "calibration.source=a=b.txt",
        ],
    )
    assert made.select.protect == (0, 11)
    assert made.select.settings_of("elder").lambda1 == 0.001
    assert made.evaluate.limit is None
    assert made.recover.lr == "auto"
    assert made.model.revision == "123456"
    assert made.gate.check_generation is False
    assert made.calibration.source == "a=b.txt"


@pytest.mark.parametrize(
    "text", ["ratio=0.5", "select.ratio", "select=1", "=", "select.=1"]
)
def test_an_override_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not of the form section.key=value"):
        load_params(None, [text])


def test_options_go_over_overrides_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("select: {layers: 1, ratio: 0.1}\ncalibration: {seed: 1}\nstore:\n")
    made = load_params(
        path,
        ["select.layers=2", "calibration.seed=2"],
        {"select.layers": 3, "select.ratio": None},
    )
    assert (made.select.layers, made.select.ratio, made.calibration.seed) == (3, 0.1, 2)
    assert made.store == Params().store


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match="there is no parameter file"):
        load_params(path)
    path.write_text("select: [")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_params(path)
    path.write_text("- select")
    with pytest.raises(UserError, match="must hold sections"):
        load_params(path)
    path.write_text("select: 3")
    with pytest.raises(UserError, match="section 'select' must hold keys"):
        load_params(path, ["select.ratio=0.5"])


def test_parameters_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Params().select.ratio = 0.5  # type: ignore[misc]


def test_the_nearest_word() -> None:
    assert (
        nearest("ratoi", ["ratio", "layers"])
        == "did you mean 'ratio'? valid: layers, ratio"
    )
    assert nearest("zzz", ["ratio", "layers"]) == "valid: layers, ratio"


def test_elder_set_lies_between_the_file_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("store: {url: file, region: file}\nregistry: {name: file}\n")
    monkeypatch.setenv("ELDER_SET", "store.url=machine  store.region=machine")
    settings = read_params(path, ["store.url=command"], {})
    assert (settings.store.url, settings.store.region, settings.registry.name) == (
        "command",
        "machine",
        "file",
    )
    # what a run has written down stays as it is
    assert load_params(path).store.url == "file"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "refit"),
        ({"recover": {"optimizer": "adamw"}}, "refit"),
        ({"recover": {"lr": 1e-3}}, "refit"),
        ({"recover": {"optimizer": "muon"}}, "none"),
        ({"recover": {"mode": "none"}}, "none"),
        ({"recover": {"epochs": 0}}, "none"),
        ({"regularise": {"epochs": 1, "anneal": 0.5}}, "none"),
        ({"compensate": {"method": "ghost"}, "recover": {"mode": "none"}}, "ghost"),
        ({"compensate": {"method": "none"}}, "none"),
    ],
)
def test_auto_mends_where_adamw_may_recover(changes: dict[str, Any], name: str) -> None:
    assert validate(changes).compensation == name
