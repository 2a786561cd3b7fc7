"""What all sections have in common, and the section that chooses one of a catalogue."""

import os
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, field_validator
from pydantic_core import PydanticCustomError

from elder.params.catalogue import Catalogue

TOO_LARGE = 2**63  # of what torch takes as a seed or a size
SHORTEST = 8  # tokens of a block
Auto = Literal["auto"]
Rate = Annotated[float, Field(gt=0)]
Strength = Annotated[float, Field(ge=0)]


def place(value: str | None) -> str | None:
    """Return the name of a file or folder, or what else may stand there, with ``~`` spelt out as a shell would.

    A shell leaves it as it is within quotes, in a file, and behind ``section.key=``. An empty name, mostly that of a
    variable that is not set, would mean the present folder.

    Raises:
        ValueError: if it can be no name.
    """
    if value is None:
        return None
    if not value or "\0" in value:
        raise ValueError("should name something; it is empty, or has a null character")
    return os.path.expanduser(value)


def long_enough(value: int | str) -> int | str:
    """Return the length of blocks, in tokens, or auto.

    Raises:
        ValueError: if it is too short to say anything.
    """
    if isinstance(value, int) and value < SHORTEST:
        raise ValueError(f"a block needs at least {SHORTEST} tokens")
    return value


class Section(BaseModel):
    """A frozen group of parameters that refuses unknown keys."""

    # YAML reads an all-digit revision as a number, and 1e-3 as a string: both mean what the field says; an error's text
    # shows no value, which may be a secret
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        hide_input_in_errors=True,
    )

    @field_validator("*")
    @classmethod
    def _no_huge_integer(cls, value: object) -> object:
        if isinstance(value, int) and value >= TOO_LARGE:
            raise ValueError("should be less than 2^63")
        return value


def _keys_and_values(value: object) -> object:
    """Refuse what cannot be the section of an entry; whether there is such an entry is seen where all is read."""
    if isinstance(value, BaseModel | dict):
        return value
    if value is None:
        return {}
    raise PydanticCustomError("extra_forbidden", "Extra inputs are not permitted")


class Choice(Section):
    """A section that chooses one of a catalogue; beside its own keys each entry's settings stand under its name.

    `elder.settings.validate` checks the settings of all entries. A section that is made by hand need not hold any:
    ``settings_of`` knows the defaults.
    """

    model_config = ConfigDict(extra="allow")
    catalogue: ClassVar[Catalogue[Any]]
    chooser: ClassVar[str] = "method"  # the key that names the entry
    __pydantic_extra__: dict[str, Annotated[Any, PlainValidator(_keys_and_values)]]

    @property
    def chosen(self) -> str:
        """Return the name of the entry that is chosen."""
        name: str = getattr(self, self.chooser)
        return name

    @property
    def entry(self) -> str | None:
        """Return the name of the entry whose settings count; None where there is none."""
        return None if self.chosen in self.catalogue.others else self.chosen

    def settings_of(self, name: str) -> Any:
        """Return the settings of an entry, of the type that it is registered with.

        Raises:
            UserError: for an unknown name.
        """
        wanted = self.catalogue.find(name).settings
        given = (self.__pydantic_extra__ or {}).get(name, {})
        return given if isinstance(given, wanted) else wanted.model_validate(given)

    def own(self) -> dict[str, Any]:
        """Return all that the choice depends on, as plain values: the shared keys, and the settings of its entry."""
        shared = self.model_dump(
            mode="json", exclude=set(self.__pydantic_extra__ or {})
        )
        if self.entry is None:
            return shared
        settings = self.settings_of(self.entry).model_dump(mode="json")
        return shared | ({self.entry: settings} if settings else {})
