"""YAML as parameters need it: what could be misread, or could fill the memory, is refused in one sentence.

Words keep their letters: ``off``, ``no`` and ``2024-01-01`` are strings, and the field that they are for says what they
mean, so that ``gate.mode=off`` and the country NO are what they look like. Only ``true``, ``false``, ``null`` and
numbers without leading zeros are more than strings.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.composer import ComposerError

from elder.errors import UserError

LARGEST = 256 * 1024  # bytes of a file; those of this project are of a few thousand
DEEPEST = 20  # levels; parameters have four
LONGEST_NUMBER = 19  # digits; longer ones stay strings, which a number's field refuses


class StrictLoader(yaml.SafeLoader):
    """A loader that refuses aliases, tags, keys given twice and deep nesting."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, unless it is of a kind that is refused."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self._refuse("an alias (*) is not allowed", event)
        if getattr(event, "tag", None):
            self._refuse("a tag (!) is not allowed", event)
        if self.depth >= DEEPEST:
            self._refuse(f"more than {DEEPEST} levels are not allowed", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Construct a mapping whose keys are all different."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                self._refuse(f"the key {key.value[:60]!r} is given twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def _refuse(self, sentence: str, there: Any) -> NoReturn:
        raise ComposerError(None, None, sentence, there.start_mark)


StrictLoader.yaml_implicit_resolvers = {}  # its own, not the list of all loaders


def _resolve(tag: str, pattern: str, first: str) -> None:
    StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first)
    )


_resolve("null", r"~|null|Null|NULL|", "~nN\0")
StrictLoader.yaml_implicit_resolvers.setdefault("", []).extend(
    StrictLoader.yaml_implicit_resolvers["~"]
)
_resolve("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", rf"[-+]?(?:0|[1-9][0-9]{{0,{LONGEST_NUMBER - 1}}})", "-+0123456789")
_resolve(
    "float",
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?",
    "-+.0123456789",
)
_resolve("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")


def parse_yaml(text: str) -> Any:
    """Return what a text says.

    Raises:
        yaml.YAMLError: if it is not YAML, or of a kind that is refused.
    """
    return yaml.load(text, StrictLoader)


def read_yaml(path: Path, what: str, cure: str) -> Any:
    """Return what a YAML file holds.

    Args:
        path: the file.
        what: it is, for a sentence that refuses it.
        cure: what to do where it is missing.

    Raises:
        UserError: if it is missing, too large, cannot be read, is not YAML, or of a kind that is refused.
    """
    try:
        with path.open("rb") as handle:
            content = handle.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"there is no {what} {str(path)!r}; {cure}") from None
    except OSError as error:
        raise UserError(
            f"the {what} {str(path)!r} cannot be read: {error.strerror}"
        ) from None
    if len(content) > LARGEST:
        raise UserError(
            f"the {what} {str(path)!r} has more than {LARGEST // 1024} KiB; {cure}"
        )
    try:
        return parse_yaml(content.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} is not valid YAML: {_reason(error)}") from None


def _reason(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """Say what is wrong and where, without the line itself: it may hold a password."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())[:300]
    said = " ".join(filter(None, (error.context, error.problem)))
    mark = error.problem_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{said[:300]}{place}"
