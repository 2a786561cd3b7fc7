"""Where parameters come from, and which of them hold.

One order, from the weakest to the strongest:

1. the defaults in `elder.params`, and those that selections and compensations bring along;
2. the parameter file, ``params.yaml`` or that of ``--params``;
3. a preset of ``elder compare``, or the recipe of ``--method``: what the method is as its paper has it;
4. ``ELDER_SET``, overrides separated by spaces, for what belongs to a machine: its store, its registry;
5. ``--set section.key=value``, the later over the earlier;
6. options with a name of their own: ``--method``, ``--ratio``, ``--seed``, ...

What a run has written down is read as it stands: no ``ELDER_SET`` changes it. Where models are shown beside one
another, each is what its name says: rows of ``elder compare`` and a run's baselines lay their recipes over all of this.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from inspect import isclass
from pathlib import Path
from reprlib import Repr

import yaml
from pydantic import BaseModel, ValidationError

from elder.errors import UserError, nearest
from elder.params import Choice, Params
from elder.params.catalogue import NONE, SELECTIONS, Recipe
from elder.params.older import BEFORE, MOVED
from elder.params.strict_yaml import parse_yaml, read_yaml
from elder.record import Json
from elder.secrecy import (
    hide_secrets,
    remember_address,
    remember_webhook,
    without_secrets,
)

DEFAULT = "default"  # the name of the recipe that the parameters are as they stand
ELDER_SET = "ELDER_SET"
# sections that no number depends on
MACHINE = (
    "store",
    "registry",
    "notify",
    "signing",
)
# what a decision on a registered model needs
DECISION = (*MACHINE, "gate")
MOST_FAULTS = 20  # that one message lists
LONGEST_WORD = 80  # characters of a key that a message shows

# what every method's recipe begins with: a selection as published trains and mends nothing, unless it says so
NOTHING_ELSE: Recipe = {
    "regularise": {"epochs": 0},
    "compensate": {"method": NONE},
    "recover": {"mode": "none"},
}

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def read_params(
    path: Path | None,
    overrides: list[str] | None,
    values: Mapping[str, Json],
    method: str | None = None,
    preset: Recipe | None = None,
    sections: Collection[str] | None = None,
) -> Params:
    """Read the parameters of a command, in the order that the head of this file gives.

    Args:
        path: parameter file; None takes ``params.yaml`` of the present folder, if there is one.
        overrides: ``section.key=value``; values are YAML, so ``null``, ``[0, 11]`` and ``1e-3`` mean what they say.
        values: {"section.key": value} of named options; None values are left out.
        method: whose recipe is laid over the file; None or ``default`` for none.
        preset: sections that are laid over the file.
        sections: those that the command needs; the others keep their defaults, whatever is given for them. None: all.

    Raises:
        UserError: for an unknown method, and with every fault, one a line, that the parameters have.
    """
    if path is None and Path("params.yaml").is_file():
        path = Path("params.yaml")
    _refuse_open_secrets(overrides or [])
    options = dict(values)
    if options.get("select.ratio") is not None:
        if options.get("select.layers") is not None:
            raise UserError("--layers and --ratio were both given; give one of them")
        overrides = [*(overrides or []), "select.layers=null"]
    tree = _read_sections(path) if path else {}
    _merge(tree, preset or {})
    if method not in (None, DEFAULT):
        lay_recipe(tree, str(method))
        options["select.method"] = method
    _lay_overrides(tree, os.environ.get(ELDER_SET, "").split(), ELDER_SET)
    _lay_overrides(tree, overrides or [], "--set")
    _lay_values(tree, options)
    return validate(tree, sections)


def load_params(
    path: Path | None = None,
    overrides: list[str] | None = None,
    values: Mapping[str, Json] | None = None,
) -> Params:
    """Read parameters that somebody has written down, whatever the machine's ``ELDER_SET`` says; see `read_params`.

    Raises:
        UserError: with every fault, one a line, and the nearest valid name for each unknown one.
    """
    tree = _read_sections(path) if path else {}
    _lay_overrides(tree, overrides or [], "--set")
    _lay_values(tree, values or {})
    return validate(tree)


def params_of_record(tree: Mapping[str, Json]) -> Params:
    """Return the parameters that a record holds; keys at a place of an older version are moved to their present one.

    A key that an older version had not means what that version did.

    Args:
        tree: ``lineage.params`` of a record, of this or an older version; it is left as it is.

    Raises:
        UserError: for what is wrong with them all the same.
    """
    present = deepcopy(dict(tree))
    for former, places in MOVED.items():
        section, key = former.split(".")
        if isinstance(present.get(section), dict) and key in present[section]:
            value = present[section].pop(key)
            for place in places:
                lay_override(present, place, value)
    whole: dict[str, Json] = {}
    for key, value in BEFORE.items():
        lay_override(whole, key, value)
    _merge(whole, present)
    return validate(whole)


def machine_overrides() -> list[str]:
    """Return those overrides of ``ELDER_SET`` that say where a machine's services are, and no others.

    For processes that follow a record: its numbers hold, wherever they are computed again.
    """
    given = os.environ.get(ELDER_SET, "").split()
    return [text for text in given if text.partition(".")[0] in MACHINE]


def lay_recipe(tree: dict[str, Json], method: str) -> None:
    """Lay a method's recipe over a tree of sections, in place.

    Raises:
        UserError: for an unknown method.
    """
    if method not in SELECTIONS:
        raise UserError(
            f"there is no method {method!r}; {nearest(method, [*SELECTIONS, DEFAULT])}"
        )
    for recipe in (NOTHING_ELSE, SELECTIONS[method].recipe):
        _merge(tree, recipe)
    _merge(tree, {"select": {"method": method}})


def lay_override(tree: dict[str, Json], key: str, value: Json) -> None:
    """Set ``section.key`` or ``section.name.key`` in a tree of sections, in place.

    Raises:
        UserError: if what should hold the key is no section.
    """
    *sections, name = key.split(".")
    for depth, section in enumerate(sections, start=1):
        if tree.get(section) is None:
            tree[section] = {}
        if not isinstance(tree[section], dict):
            place = ".".join(sections[:depth])
            raise UserError(f"section {place!r} must hold keys and values")
        tree = tree[section]
    tree[name] = value


def read_override(text: str, source: str = "--set") -> tuple[str, Json]:
    """Return key and value of ``section.key=value``.

    Raises:
        UserError: if it is of another form.
    """
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        shown = f"{source} {key.strip()!r}" if _is_key(key) else f"a word of {source}"
        raise UserError(
            f"{shown} is not of the form section.key=value, such as select.ratio=0.25"
        )
    try:
        return key.strip(), parse_yaml(value)
    except yaml.YAMLError:
        return key.strip(), value


def _is_key(text: str) -> bool:
    """Say whether a message may show a text: it is the name of a key, and no piece of a password."""
    section, _, _ = text.strip().partition(".")
    return section in Params.model_fields and bool(re.fullmatch(r"[\w. -]+", text))


def _refuse_open_secrets(overrides: Iterable[str]) -> None:
    """Refuse a secret on a command line, which all on this machine can read, or in what Prefect keeps of a flow."""
    for text in overrides:
        key, value = read_override(text)
        if value and (without_secrets(value) != value or key == "notify.webhook"):
            raise UserError(
                f"{hide_secrets(key)} holds what may be a password or a token, and --set can be read in the list of"
                f" processes: set it in a parameter file or in the environment's {ELDER_SET}"
            )


def validate(
    tree: Mapping[str, Json], sections: Collection[str] | None = None
) -> Params:
    """Check a tree of sections, those of all selections and compensations included.

    Args:
        tree: {section: {key: value}}.
        sections: see `read_params`; the settings of methods need torch, which takes seconds to import.

    Raises:
        UserError: with every fault, one a line.
    """
    present = dict(tree)
    faults: list[str] = []
    for name, field in Params.model_fields.items():
        if sections is not None and name not in sections:
            present.pop(name, None)
            continue
        choice, section = field.annotation, present.get(name, {})
        if isclass(choice) and issubclass(choice, Choice) and isinstance(section, dict):
            present[name] = _check_entries(name, section, choice, faults)
    try:
        made = Params.model_validate(present)
    except ValidationError as error:
        faults += [
            _fault(fault, Params, ()) for fault in error.errors(include_url=False)
        ]
    if faults:
        raise UserError(_all_faults(faults))
    _remember_secrets(made)
    return made


def _remember_secrets(settings: Params) -> None:
    """Let messages know which secrets came by parameters."""
    places = settings.store.url, settings.store.endpoint, settings.registry.tracking_uri
    for address in places:
        remember_address(address)
    if settings.notify.webhook:
        remember_webhook(settings.notify.webhook.get_secret_value())


def _check_entries(
    name: str, section: dict[str, Json], choice: type[Choice], faults: list[str]
) -> dict[str, Json]:
    """Return a section with the settings of all entries of its catalogue checked, defaults filled in; note faults."""
    own, catalogue = choice.model_fields, choice.catalogue
    checked = {key: value for key, value in section.items() if key in own}
    with_settings = [
        key for key, entry in catalogue.items() if entry.settings.model_fields
    ]
    for key in section:
        if key not in own and key not in catalogue:
            faults.append(_unknown(f"{name}.{key}", [*own, *with_settings]))
    for key in catalogue:
        settings, given = catalogue[key].settings, section.get(key)
        try:
            made = settings.model_validate({} if given is None else given)
        except ValidationError as error:
            faults += [_fault(fault, settings, (name, key)) for fault in error.errors()]
        else:
            if key in with_settings:
                checked[key] = made
    return checked


def _fault(fault: Json, model: type[BaseModel], place: tuple[str, ...]) -> str:
    """Turn one pydantic error into one line that names the key, the value and what is allowed.

    A machine's services may have a secret as value, whatever its form: those lines have none.

    Args:
        fault: of ``ValidationError.errors``.
        model: what was validated.
        place: where in the tree that is.
    """
    keys = list(place)
    for part in fault["loc"]:
        keys.append(str(part))
        fields = model.model_fields
        inner = fields[str(part)].annotation if part in fields else None
        if not (isclass(inner) and issubclass(inner, BaseModel)):
            break  # what follows in the place is an item of a list, or a kind of value
        model = inner
    key = ".".join(keys)
    if fault["type"] == "extra_forbidden":
        return _unknown(key, model.model_fields)
    message = (
        fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
    )
    if fault["type"] == "model_type":
        message = "should hold keys and values"
    value = without_secrets(fault["input"])
    shown = "" if keys[0] in MACHINE else f" = {_short.repr(value)}"
    return f"{_cut(key)}{shown}: {message}"


def _unknown(key: str, valid: Collection[str]) -> str:
    """Say that there is no such key; where it is now, if it had another place before."""
    if key in MOVED:
        return f"{key}: this key has moved, set {' or '.join(MOVED[key])}"
    place, _, word = key.rpartition(".")
    hint = nearest(_cut(word), valid) if valid else f"{_cut(place)} has no settings"
    return f"{_cut(key)}: unknown key, {hint}"


def _all_faults(faults: list[str]) -> str:
    listed = "\n".join(f"  {fault}" for fault in faults[:MOST_FAULTS])
    more = (
        f"\n  and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    )
    return f"the parameters have {len(faults)} fault(s):\n{listed}{more}"


def _cut(text: str) -> str:
    text = hide_secrets(text)
    return text if len(text) <= LONGEST_WORD else f"{text[:LONGEST_WORD]}..."


def _read_sections(path: Path) -> dict[str, Json]:
    tree = read_yaml(path, "parameter file", "name one with --params")
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(
            f"{str(path)!r} must hold sections of keys and values, such as 'select:' and below it 'ratio: 0.25'"
        )
    return {str(key): {} if value is None else value for key, value in tree.items()}


def _lay_overrides(
    tree: dict[str, Json], overrides: Iterable[str], source: str
) -> None:
    for text in overrides:
        lay_override(tree, *read_override(text, source))


def _lay_values(tree: dict[str, Json], values: Mapping[str, Json]) -> None:
    for key, value in values.items():
        if value is not None:
            lay_override(tree, key, value)


def _merge(tree: dict[str, Json], recipe: Mapping[str, Json]) -> None:
    """Lay a tree over another, in place: sections are merged, values replaced."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            if not isinstance(tree.get(key), dict):
                tree[key] = {}
            _merge(tree[key], value)
        else:
            tree[key] = value
