"""Numbers as people read them: in the report, the card and the tables.

`humanize` has the like of `size` and `duration`, but writes ``812 Bytes`` and ``3 minutes and 35 seconds`` where the
columns of both documents hold ``812 B`` and ``3 min 35 s``; and it knows no number with its standard error.
"""

import math

import yaml

from elder.record import Json, finite

LARGE = {1e12: "T", 1e9: "G", 1e6: "M"}
BINARY = {2**30: "GiB", 2**20: "MiB", 2**10: "KiB"}


def number(value: Json, digits: int = 4) -> str:
    """Return a number with ``digits`` significant digits and thousands set apart; anything else as words."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    if not 1e-2 <= abs(value) < 1e9:
        return f"{value:.{digits}g}"
    places = max(0, digits - 1 - _power(value))
    return f"{value:,.{places}f}"


def _power(value: float) -> int:
    """Return the power of ten of a number's first digit."""
    return math.floor(math.log10(abs(value)))


def compact(value: Json, digits: int = 3) -> str:
    """Return a number in few characters, such as ``5.73 M``."""
    if not finite(value):
        return number(value, digits)
    for factor, unit in LARGE.items():
        if abs(value) >= factor:
            shown = number(value / factor, digits)
            return f"{shown} {unit}"
    if abs(value) >= 1e4:
        shown = number(value / 1e3, digits)
        return f"{shown} k"
    return number(value, digits)


def size(value: Json) -> str:
    """Return bytes in binary units."""
    if not finite(value):
        return "–"
    for factor, unit in BINARY.items():
        if value >= factor:
            shown = number(value / factor, 3)
            return f"{shown} {unit}"
    return f"{value} B"


def duration(value: Json) -> str:
    """Return seconds in the two largest units."""
    if not finite(value):
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def plus_minus(value: Json, error: Json) -> str:
    """Return ``value ± error`` with the two digits of the error that mean something, such as ``48.41 ± 0.62``.

    Without an error, or without a value, it is the value alone.
    """
    if not finite(value) or not finite(error) or error <= 0:
        return number(value)
    places = max(0, 1 - _power(error))
    shown = f"{value:,.{places}f}"
    return f"{shown} ± {error:,.{places}f}"


def as_yaml(tree: Json) -> str:
    """Return parameters as YAML, in their own order."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100).strip()
