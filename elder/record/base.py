"""What all parts of a record share: frozen models that keep every value as it was written, and plain JSON of them."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Number = int | float
Json = Any  # what foreign libraries and users' settings put into a record: plain JSON values
Domain = Literal["in_domain", "out_of_domain"]
DOMAINS: dict[Domain, str] = {
    "in_domain": "in domain",
    "out_of_domain": "out of domain",
}
CANDIDATE, DENSE, BASELINE = "candidate", "dense", "baseline"


class Plain(BaseModel):
    """A frozen part of a record; keys that this version does not know are kept, and no value is turned into another."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        strict=True,
        protected_namespaces=(),
        ser_json_inf_nan="constants",
    )


def plain(value: BaseModel) -> dict[str, Json]:
    """Return a part of a record as plain values: just what was set, in the order of the schema.

    What was read from JSON comes back unchanged. What was measured may hold infinity: see `json_safe`.
    """
    return value.model_dump(mode="json", exclude_unset=True)


def json_safe(value: Json) -> Json:
    """Return plain values with None for every number that is not finite: JSON has no infinity and no NaN."""
    if isinstance(value, dict):
        return {key: json_safe(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def finite(value: Json) -> bool:
    """Say whether a value is a finite number; a bool is none."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )
