"""What a row of a comparison is: the words of ``--methods``, turned into parameters.

A row is a selection and what follows it: ``sleb``, ``sleb+distil``, ``shortgpt+linear+distil``,
``elder[regularise.epochs=0]``. ``default`` stands for the parameters as they are.
"""

import re
from dataclasses import dataclass
from typing import Any

from elder.compensation import COMPENSATIONS
from elder.compression.recipes import apply_method
from elder.errors import UserError, nearest
from elder.fingerprint import RECIPE
from elder.params import Params
from elder.recovery import RECOVERIES
from elder.selection import METHODS
from elder.settings import DEFAULT, lay_override, read_override, validate

ALIASES = {"remove-then-train": "train", "remove-then-distil": "distil"}
FLOORS = ("random", "last")
ROW = re.compile(r"(?P<words>[^\[\]]+)(\[(?P<changes>.*)\])?")


@dataclass(frozen=True)
class RowSpec:
    """One row.

    Attributes:
        name: as the user wrote it.
        method: name of the selection, or ``default``.
        parts: what follows the removal: a way of recovery, a compensation.
        changes: parameters of this row alone, (section.key, value).
    """

    name: str
    method: str
    parts: tuple[str, ...]
    changes: tuple[tuple[str, Any], ...]

    def settings(self, base: Params) -> Params:
        """Return the parameters of this row: the method's recipe over ``base``, then its parts and changes.

        Raises:
            UserError: for a change that the parameters refuse.
        """
        tree = apply_method(base, self.method).model_dump()
        for part in self.parts:
            section, key = (
                ("recover", "mode") if part in RECOVERIES else ("compensate", "method")
            )
            tree[section][key] = part
        for name, value in self.changes:
            self._check_section(name.partition(".")[0], name)
            lay_override(tree, name, value)
        return validate(tree)

    def _check_section(self, section: str, name: str) -> None:
        """Refuse a change of anything but the recipe: a row that was measured otherwise could not be compared."""
        if section in RECIPE:
            return
        if section in Params.model_fields:
            raise UserError(
                f"{self.name!r} sets {name!r}, which all rows share; set it for all with --set"
            )
        raise UserError(
            f"{self.name!r} sets {name!r}, a section that is not there; {nearest(section, RECIPE)}"
        )


def parse_rows(text: str) -> list[RowSpec]:
    """Read the rows of ``--methods``; commas inside brackets belong to the row.

    Raises:
        UserError: for an unknown word, a row given twice, or none at all.
    """
    rows = [_parse(name) for name in split_outside(text)]
    if not rows:
        raise UserError(
            "no method was named; give --methods such as default,sleb,shortgpt+distil"
        )
    names = [row.name for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"the row {twice!r} was given twice; name each row once")
    return rows


def split_outside(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    pieces, depth = [""], 0
    for character in text:
        if character == "[":
            depth += 1
        elif character == "]":
            depth -= 1
        if character == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces if piece.strip()]


def _parse(name: str) -> RowSpec:
    whole = ROW.fullmatch(name)
    if whole is None:
        raise UserError(
            f"{name!r} is not of the form method+part[section.key=value,...], such as sleb+distil"
        )
    method, *parts = (word.strip() for word in whole["words"].split("+"))
    parts = [ALIASES.get(part, part) for part in parts]
    if method not in METHODS and method != DEFAULT:
        raise UserError(
            f"there is no method {method!r}; {nearest(method, [*METHODS, DEFAULT])}"
        )
    _check_parts(name, method, parts)
    changes = [_change(name, text) for text in split_outside(whole["changes"] or "")]
    return RowSpec(name, method, tuple(parts), tuple(changes))


def _check_parts(name: str, method: str, parts: list[str]) -> None:
    """Refuse what cannot follow a method, and two of one kind."""
    known = [*RECOVERIES, *COMPENSATIONS]
    for part in parts:
        if part not in known:
            raise UserError(
                f"nothing named {part!r} can follow {method!r}; {nearest(part, [*known, *ALIASES])}"
            )
    kinds = {
        "ways of recovery": tuple(RECOVERIES),
        "compensations": tuple(COMPENSATIONS),
    }
    for kind, words in kinds.items():
        given = [part for part in parts if part in words]
        if len(given) > 1:
            listed = " and ".join(given)
            raise UserError(f"{name!r} names {len(given)} {kind}, {listed}; name one")


def _change(row: str, text: str) -> tuple[str, Any]:
    return read_override(text, f"the row {row!r} holds")
