"""Where parameters come from: a file, ELDER_SET, ``--set``, and options with a name of their own."""

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from elder.errors import UserError, nearest
from elder.params import Params


def load_params(
    path: Path | None = None,
    overrides: list[str] | None = None,
    values: dict[str, Any] | None = None,
) -> Params:
    """Read ``params.yaml`` and apply ``section.key=value`` overrides.

    Args:
        path: a YAML file with any of the sections; None takes the defaults.
        overrides: values are read as YAML, so ``null``, ``[0, 11]`` and ``1e-3`` mean what they say.
        values: {"section.key": value}, laid over all; None values are left out.

    Returns:
        The frozen parameters.

    Raises:
        UserError: with every fault, one a line, and the nearest valid name for each unknown one.
    """
    tree = _read_sections(path) if path else {}
    for text in overrides or []:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and name):
            raise UserError(
                f"--set {text!r} is not of the form section.key=value, such as select.ratio=0.25"
            )
        _section(tree, section)[name] = _scalar(value)
    for key, value in (values or {}).items():
        section, _, name = key.partition(".")
        if value is not None:
            _section(tree, section)[name] = value
    return validate(tree)


def validate(tree: dict[str, Any]) -> Params:
    """Check a tree of sections; list all faults at once."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(fault)}" for fault in error.errors())
        raise UserError(
            f"the parameters have {error.error_count()} fault(s):\n{faults}"
        ) from None


def read_yaml(path: Path, what: str, cure: str) -> Any:
    """Return what a YAML file holds.

    Args:
        path: the file.
        what: it is, for a sentence that refuses it.
        cure: what to do where it is missing.

    Raises:
        UserError: if it is missing, cannot be read or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {what} {str(path)!r}; {cure}") from None
    except OSError as error:
        raise UserError(f"the {what} {str(path)!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{str(path)!r} is not valid YAML: {' '.join(str(error).split())}"
        ) from None


def _read_sections(path: Path) -> dict[str, Any]:
    tree = read_yaml(path, "parameter file", "name one with --params")
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(
            f"{str(path)!r} must hold sections of keys and values, such as 'select:' and below it 'ratio: 0.25'"
        )
    return {key: {} if value is None else value for key, value in tree.items()}


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.setdefault(name, {})
    if not isinstance(section, dict):
        raise UserError(f"section {name!r} must hold keys and values, not {section!r}")
    return section


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _fault(fault: Any) -> str:
    """Turn one pydantic error into one line that names the key, the value and what is allowed."""
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path[:2])
    if fault["type"] == "extra_forbidden":
        section = Params.model_fields.get(path[0]) if len(path) > 1 else None
        fields = section.annotation.model_fields if section else Params.model_fields  # type: ignore[union-attr]
        return f"{key}: unknown key, {nearest(path[-1], fields)}"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return f"{key} = {fault['input']!r}: {message}"


def read_params(
    path: Path | None, overrides: list[str] | None, values: dict[str, Any]
) -> Params:
    """Read parameters: the file, then ELDER_SET, then ``--set``, then the options that have a name of their own.

    ELDER_SET holds overrides separated by spaces, for what belongs to a machine and not to a run: where its store and
    its registry are.
    """
    if path is None and Path("params.yaml").is_file():
        path = Path("params.yaml")
    if values.get("select.ratio") is not None:
        if values.get("select.layers") is not None:
            raise UserError("--layers and --ratio were both given; give one of them")
        overrides = [*(overrides or []), "select.layers=null"]
    overrides = [*os.environ.get("ELDER_SET", "").split(), *(overrides or [])]
    return load_params(path, overrides, values)
