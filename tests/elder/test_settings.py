"""Which parameters hold: one order of precedence, and what records and files of older versions mean."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from elder.errors import UserError
from elder.fingerprint import recipe_of
from elder.params import Params, Select
from elder.params.catalogue import COMPENSATIONS, SELECTIONS, Catalogue, NoSettings
from elder.settings import (
    MOVED,
    load_params,
    machine_overrides,
    params_of_record,
    read_params,
    validate,
)

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "records" / "f46e5ac" / "published" / "record.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(
        "regularise: {epochs: 1, warmup: 0.1}\nselect: {elder: {lr: 0.7}}\n"
    )
    return path


# --- what a command needs ---


def test_sections_that_a_command_does_not_need_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("select: {method: slep}\nregistry: {name: shop}\n")
    assert read_params(path, [], {}, sections=("registry",)).registry.name == "shop"
    with pytest.raises(UserError, match=r"store\.urk"):
        read_params(path, ["store.urk=x"], {}, sections=("registry", "store"))
    with pytest.raises(UserError, match="regisrty"):
        read_params(path, ["regisrty.name=x"], {}, sections=("registry",))


@pytest.mark.parametrize("size", ["1,5GB", "1 000 MB", "24GB free", "-1GB", "GB"])
def test_a_size_is_read_whole_or_not_at_all(size: str) -> None:
    """Read as far as it goes, the first is a single byte."""
    with pytest.raises(UserError, match="give a number and a unit, such as 1.5GB"):
        validate({"model": {"max_memory": size}})
    read = validate({"model": {"max_memory": "1.5 GB"}}).model.max_memory
    assert read == 1_500_000_000


# --- the order ---


@pytest.mark.parametrize(
    ("method", "machine", "given", "option", "epochs"),
    [
        (None, "", [], None, 1),  # the file over the default of 0
        ("elder", "", [], None, 3),  # the recipe over the file
        ("sleb", "", [], None, 0),
        ("elder", "regularise.epochs=4", [], None, 4),  # the machine over the recipe
        (
            "elder",
            "regularise.epochs=4",
            ["regularise.epochs=5"],
            None,
            5,
        ),  # --set over both
        (
            "elder",
            "",
            ["regularise.epochs=5", "regularise.epochs=6"],
            None,
            6,
        ),  # the later
        (
            "elder",
            "regularise.epochs=4",
            ["regularise.epochs=5"],
            7,
            7,
        ),  # an option over all
    ],
)
def test_the_order_of_precedence(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str | None,
    machine: str,
    given: list[str],
    option: float | None,
    epochs: float,
) -> None:
    monkeypatch.setenv("ELDER_SET", machine)
    made = read_params(file, given, {"regularise.epochs": option}, method)
    assert made.regularise.epochs == epochs
    assert made.regularise.warmup == (0.03 if method == "elder" else 0.1)
    assert made.select.method == (method or "elder")
    assert made.select.settings_of("elder").lr == 0.7  # no recipe says it


def test_a_method_that_is_named_wins_over_one_that_is_set(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELDER_SET", "select.method=shortgpt")
    assert read_params(file, None, {}).select.method == "shortgpt"
    assert read_params(file, ["select.method=last"], {}).select.method == "last"
    assert read_params(file, ["select.method=last"], {}, "sleb").select.method == "sleb"
    with pytest.raises(UserError, match="no method 'slebb'; did you mean 'sleb'?"):
        read_params(file, None, {}, "slebb")


def test_a_preset_lies_over_the_file_and_below_the_machine(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = {
        "regularise": {"epochs": 2, "warmup": 0.2},
        "select": {"elder": {"lr": 0.8}},
    }
    monkeypatch.setenv("ELDER_SET", "regularise.epochs=4")
    made = read_params(file, None, {}, preset=preset)
    assert (made.regularise.epochs, made.regularise.warmup) == (4, 0.2)
    assert made.select.settings_of("elder").lr == 0.8


def test_a_wrong_override_names_where_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ELDER_SET", "store.url")
    with pytest.raises(UserError, match="^ELDER_SET 'store.url' is not of the form"):
        read_params(None, None, {})


def test_what_is_written_down_is_read_whatever_the_machine_says(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELDER_SET", "regularise.epochs=4 select.elder.lr=0.9")
    made = load_params(file)
    assert made.regularise.epochs == 1
    assert made.select.settings_of("elder").lr == 0.7


def test_only_services_of_elder_set_reach_what_follows_a_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = "store.url=s3://b/p select.ratio=0.5 registry.tracking_uri=http://x model.dtype=float16"
    monkeypatch.setenv("ELDER_SET", given)
    assert machine_overrides() == [
        "store.url=s3://b/p",
        "registry.tracking_uri=http://x",
    ]


# --- the settings of each method ---


def test_each_method_reads_its_own_section(file: Path) -> None:
    made = read_params(
        file, ["select.elder.lambda1=0.1", "select.shortened-taylor.batch=3"], {}
    )
    assert made.select.settings_of("elder").lambda1 == 0.1
    assert made.select.settings_of("shortened-taylor").batch == 3
    assert made.select.settings_of("shortgpt") == NoSettings()
    assert Select().settings_of("laco") == load_params().select.settings_of("laco")


def test_only_the_chosen_method_counts_in_a_recipe() -> None:
    one, other = (
        load_params(None, ["select.method=laco", f"select.elder.lambda1={value}"])
        for value in (0.1, 0.2)
    )
    assert one != other
    assert recipe_of(one) == recipe_of(other)
    third = load_params(None, ["select.method=laco", "select.laco.merge_layers=3"])
    assert recipe_of(third) != recipe_of(one)
    assert recipe_of(load_params()) == recipe_of(Params())


@pytest.mark.parametrize("former", MOVED)
def test_a_key_at_its_former_place_gets_a_sentence_with_the_new_one(
    former: str, tmp_path: Path
) -> None:
    section, key = former.split(".")
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({section: {key: 2}}))
    sentence = f"{former}: this key has moved, set {' or '.join(MOVED[former])}"
    for path_or_none, given in ((path, []), (None, [f"{former}=2"])):
        with pytest.raises(UserError) as caught:
            read_params(path_or_none, given, {})
        assert str(caught.value).splitlines()[1:] == [f"  {sentence}"]


def test_a_record_of_an_older_version_means_what_it_meant() -> None:
    tree: dict[str, Any] = json.loads(OLD.read_text())["lineage"]["params"]
    before = json.dumps(tree)
    made = params_of_record(tree)
    assert json.dumps(tree) == before
    for former, places in MOVED.items():
        section, key = former.split(".")
        for place in places:
            owner, name = place.split(".")[1:]
            own = getattr(made, section)
            settings = own.settings_of(owner)
            assert json.loads(settings.model_dump_json())[name] == tree[section][key], (
                place
            )
    assert params_of_record(made.model_dump(mode="json")) == made
    # what it had no choice of
    assert made.select.elder.racing is None
    assert made.recover.distil.drawing == "multinomial"


def test_faults_in_sections_and_in_settings_are_listed_together() -> None:
    with pytest.raises(UserError, match=r"4 fault\(s\)") as caught:
        validate(
            {
                "select": {"elder": {"epochs": 0, "lamda1": 1}, "shortgpt": {"x": 1}},
                "compensate": {"linear": 3},
            }
        )
    assert {line.strip() for line in str(caught.value).splitlines()[1:]} == {
        "select.shortgpt.x: unknown key, select.shortgpt has no settings",
        "select.elder.lamda1: unknown key, did you mean 'lambda1'? valid: batch, epochs, iterative, lambda1, lr, "
        "place, racing, runners_up, shortlist, solver, written",
        "select.elder.epochs = 0: should be greater than 0",
        "compensate.linear = 3: should hold keys and values",
    }


# --- values of a size that nobody means ---


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "calibration.seed=9223372036854775808",
            "calibration.seed = 9223372036854775808: should",
        ),
        ("calibration.seed=-1", "should be greater than or equal to 0"),
        ("calibration.seed=" + "9" * 5000, "exceeded maximum size"),
        ("select.layers=" + "9" * 100_000, "exceeded maximum size"),
        ("evaluate.limit=99999999999999999999999", "should be less than 2^63"),
        ("select.elder.batch=9223372036854775808", "should be less than 2^63"),
        ("gate.mode=" + "x" * 100_000, "should be 'on', 'dry-run' or 'off'"),
        ("x" * 100_000 + ".y=1", "unknown key"),
        ("select." + "x" * 100_000 + "=1", "unknown key"),
        ("select.elder.lambda1={" + "a" * 100_000 + ": 1}", "should be a valid number"),
    ],
)
def test_huge_values_are_refused_in_a_short_sentence(
    override: str, sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_params(None, [override])
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_largest_seed_is_one_that_torch_takes() -> None:
    import torch

    seed = load_params(None, ["calibration.seed=9223372036854775807"]).calibration.seed
    torch.manual_seed(seed + 100)  # rounds count up from it


def test_many_faults_are_counted_and_not_all_listed() -> None:
    with pytest.raises(UserError, match=r"300 fault\(s\)") as caught:
        validate({"gate": {f"key{number}": 1 for number in range(300)}})
    lines = str(caught.value).splitlines()
    assert len(lines) == 22  # the count, twenty faults, and how many more
    assert lines[-1] == "  and 280 more"


# --- the catalogues ---


def test_a_catalogue_refuses_what_it_has_and_names_the_nearest() -> None:
    for catalogue in (SELECTIONS, COMPENSATIONS):
        with pytest.raises(ValueError, match="is registered already"):
            catalogue.register(next(iter(catalogue)))(lambda _: None)
    with pytest.raises(
        UserError, match="no compensation 'lineer'; did you mean 'linear'"
    ):
        COMPENSATIONS.find("lineer")
    COMPENSATIONS.refuse_unknown("none")


def test_every_setting_says_what_it_is() -> None:
    catalogues: tuple[Catalogue[Any], ...] = (SELECTIONS, COMPENSATIONS)
    for catalogue in catalogues:
        for entry in catalogue.values():
            for name, field in entry.settings.model_fields.items():
                assert field.description, f"{entry.name}.{name}"
            assert validate(entry.recipe)  # a recipe holds no key that is not there


def test_params_yaml_has_the_description_of_each_key_as_its_comment() -> None:
    lines = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
    told: dict[str, str] = {}
    place: list[str] = []
    for line in lines:
        key, colon, rest = line.partition(":")
        if not colon or line.startswith("#"):
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        place = [*place[:depth], key.strip()]
        told[".".join(place)] = rest.partition("# ")[2]

    def check(model: Any, prefix: tuple[str, ...]) -> None:
        for name, field in type(model).model_fields.items():
            check_key((*prefix, name), getattr(model, name), field.description)
        for name, settings in (model.__pydantic_extra__ or {}).items():
            check_key((*prefix, name), settings, None)

    def check_key(path: tuple[str, ...], value: Any, description: str | None) -> None:
        comment = told.pop(".".join(path))
        if hasattr(value, "model_fields"):
            assert comment, path
            check(value, path)
        else:
            assert comment == description, path

    check(load_params(), ())
    assert told == {}
