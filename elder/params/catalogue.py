"""The catalogues of selections, compensations and recoveries: each brings its function, settings, recipe and paper.

This file knows no single one. A catalogue knows the package that fills it, and imports that package the first time it
is asked; until then nothing heavy is imported, so that help appears at once.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypedDict, TypeVar, Unpack

from pydantic import BaseModel, ConfigDict

from elder.errors import UserError, nearest

F = TypeVar("F", bound=Callable[..., Any])
Recipe = Mapping[str, Mapping[str, Any]]  # {section: {key: value}}, as in params.yaml
Check = Callable[[Any, Any], None]


class NoSettings(BaseModel):
    """What an entry has that depends on no number of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Entry(Generic[F]):
    """One selection, compensation or recovery.

    Attributes:
        name: what a user calls it; also the name of its own section of parameters.
        function: what it does.
        settings: the numbers that it alone depends on, a frozen model with a description for each key.
        recipe: what the name means beyond itself, {section: {key: value}}; laid over the parameters.
        paper: where it comes from.
        teacher: the dense model is needed beside the shallower one (of a recovery).
        check: refuses a dense model that it can do nothing for, given it and one block of tokens (of a compensation).
        divided: it only runs the model, so that several processes can do it on one that is divided among them (of a
            selection); the others are left to the first process, which then holds all of it.
        everywhere: it may change any weight, not only layers that stand for removed ones (of a compensation).
    """

    name: str
    function: F
    settings: type[BaseModel]
    recipe: Recipe
    paper: str | None
    teacher: bool = False
    check: Check | None = None
    divided: bool = False
    everywhere: bool = False


class Traits(TypedDict, total=False):
    """What not every entry says of itself; see `Entry`."""

    teacher: bool
    check: Check | None
    divided: bool
    everywhere: bool


class Catalogue(Mapping[str, Entry[F]]):
    """Entries by name.

    Args:
        kind: what the entries are, for sentences: ``selection method``.
        package: importing it registers all entries.
        others: words that a user may write in place of an entry's name, such as one for no entry at all.
    """

    def __init__(self, kind: str, package: str, *others: str) -> None:
        self.kind, self.package, self.others = kind, package, others
        self.entries: dict[str, Entry[F]] = {}

    def register(
        self,
        name: str,
        settings: type[BaseModel] = NoSettings,
        recipe: Recipe | None = None,
        paper: str | None = None,
        **traits: Unpack[Traits],
    ) -> Callable[[F], F]:
        """Make the function below known by a name; see `Entry` for the arguments.

        Raises:
            ValueError: if the name is taken already.
        """

        def add(function: F) -> F:
            if name in self.entries or name in self.others:
                raise ValueError(f"a {self.kind} named {name!r} is registered already")
            self.entries[name] = Entry(
                name, function, settings, recipe or {}, paper, **traits
            )
            return function

        return add

    def find(self, name: str) -> Entry[F]:
        """Return the entry of a name.

        Raises:
            UserError: for an unknown name, with the nearest valid one.
        """
        self.refuse_unknown(name)
        return self[name]

    def refuse_unknown(self, name: str) -> None:
        """Refuse a name that is neither an entry's nor another word.

        Raises:
            UserError: with the nearest valid name.
        """
        if name not in self.words:
            raise UserError(
                f"there is no {self.kind} {name!r}; {nearest(name, self.words)}"
            )

    @property
    def words(self) -> list[str]:
        """Return all that a user may write."""
        return [*self, *self.others]

    def __getitem__(self, name: str) -> Entry[F]:
        self._fill()
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(self.entries)

    def __len__(self) -> int:
        self._fill()
        return len(self.entries)

    def _fill(self) -> None:
        importlib.import_module(self.package)


NONE, AUTO = "none", "auto"
SELECTIONS: Catalogue[Any] = Catalogue("selection method", "elder.selection")
COMPENSATIONS: Catalogue[Any] = Catalogue(
    "compensation", "elder.compensation", NONE, AUTO
)
RECOVERIES: Catalogue[Any] = Catalogue("recovery", "elder.recovery", NONE)
