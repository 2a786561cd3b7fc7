"""The documents of a text: of a file with rows, a folder, a dataset of the Hub; chats go through the chat template."""

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path
from typing import Any

from elder.errors import UserError, nearest
from elder.names import format_of, shown
from elder.params import Calibration
from elder.progress import say
from elder.record import Json
from tasks import sources

NULLS = 0.01  # share of the rows read that may be null; one may be in any case
Render = Callable[[Any], str]  # a list of messages, as text


class Documents:
    """The documents of a text, in its own order, read as a stream; rows that are null are left out and counted.

    Args:
        calibration: source, and for rows the split and the column.
        pinned: as `tasks.sources.pin` gives it.
        chat: the chat template of the model's tokenizer.
    """

    def __init__(
        self, calibration: Calibration, pinned: dict[str, Json], chat: Render
    ) -> None:
        self.calibration, self.pinned, self.chat = calibration, pinned, chat
        self.rows = 0
        self.nulls: list[int] = []

    def __iter__(self) -> Iterator[str]:
        """Yield the text of each row.

        Raises:
            UserError: if the rows cannot be read, have no such column, or one holds something else than text.
        """
        for row in sources.rows_of(self.calibration, self.pinned):
            self.rows += 1
            value = self._value(row)
            if value is None:
                self.nulls.append(self.rows)
            else:
                yield self._text(value)

    def settle(self) -> dict[str, Json]:
        """Say, once what is needed was read, how many rows that took, and how many of them were null.

        Raises:
            UserError: if more are null than may be, naming the first.
        """
        self.refuse_nulls()
        if self.nulls:
            say(
                f"{self.name}: {len(self.nulls)} of {self.rows} rows are null in column {self.calibration.column!r},"
                f" such as row {self.nulls[0]}; they are left out"
            )
        return {"rows": self.rows, "nulls": len(self.nulls)}

    def refuse_nulls(self) -> None:
        """Refuse what has more rows that are null than may be.

        Raises:
            UserError: naming the first.
        """
        if len(self.nulls) > max(1, NULLS * self.rows):
            raise UserError(
                f"column {self.calibration.column!r} of {self.name!r} is null in {len(self.nulls)} of {self.rows} "
                f"rows, the first is row {self.nulls[0]}; at most {NULLS:.0%} may be: fill or drop them"
            )

    @property
    def name(self) -> str:
        """Return the source."""
        return self.calibration.source

    def _value(self, row: dict[str, Any]) -> Any:
        column = self.calibration.column
        if column not in row:
            raise UserError(
                f"{self.name!r} has no column {column!r}; {nearest(column, row)}: set calibration.column"
            )
        # a chat without messages says as little
        return None if row[column] == [] else row[column]

    def _text(self, value: Any) -> str:
        messages = _messages(value)
        if messages is None and isinstance(value, str):
            return value
        if messages is not None:
            try:
                return self.chat([self._message(one) for one in messages])
            except UserError:
                raise
            except Exception as error:  # a template is a program of its own
                raise UserError(
                    f"the chat template refuses row {self.rows} of {self.name!r}: {sources.one_line(error)}"
                ) from None
        column = self.calibration.column
        raise UserError(
            f"column {column!r} of {self.name!r} holds {type(value).__name__}, not text or the messages of a chat, each"
            f" with role and content, in row {self.rows}"
        )

    def _message(self, message: Any) -> dict[str, Json]:
        """Return a message as templates know it: without what is null, its content as one text.

        Columnar files give every message all the keys that any has, and templates ask whether a key is there.
        """
        given = {
            key: value
            for key, value in message.items()
            if value is not None or key == "content"
        }
        parts = message.get("content")
        if isinstance(parts, list):
            other = [part for part in parts if not _is_text(part)]
            if other:
                raise UserError(
                    f"row {self.rows} of {self.name!r} holds a message with more than text, such as "
                    f"{shown(str(other[0]))}; only text can be used: drop such rows"
                )
            given["content"] = "".join(part["text"] for part in parts)
        return given


def _messages(value: Any) -> list[Any] | None:
    """Return the messages of a chat, also where they stand as JSON, as in the cell of a table; None: it is none."""
    if isinstance(value, str) and value.lstrip()[:1] == "[" and '"role"' in value:
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, list) and all(
        isinstance(one, dict) and "role" in one for one in value
    ):
        return value
    return None


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def chat_template(load_tokenizer: Callable[[], Any], name: str) -> Render:
    """Return what turns a list of messages into text as the model knows it; the tokenizer is loaded once it is needed.

    Args:
        load_tokenizer: gives the model's tokenizer.
        name: of the model, for the refusal.
    """
    loaded: list[Any] = []

    def render(messages: list[dict[str, Any]]) -> str:
        if not loaded:
            loaded.append(load_tokenizer())
        if not loaded[0].chat_template:
            raise UserError(
                f"the text holds chats, and the tokenizer of {name!r} has no chat template: give plain text, or a model"
                " that was trained to chat"
            )
        text: str = loaded[0].apply_chat_template(messages, tokenize=False)
        return text

    return render


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[Any]:
    """Open a plain text, compressed or not, as a stream of bytes.

    Raises:
        UserError: if it is not compressed as its name says, or cannot be decompressed here.
    """
    if format_of(path.name) is None:
        with path.open("rb") as handle:
            yield handle
        return
    sources.refuse_unreadable(path)
    # not fsspec.open, to which a name with "::" is a chain of files
    from fsspec.implementations.local import LocalFileSystem

    try:
        with LocalFileSystem().open(str(path), "rb", compression="infer") as handle:
            yield handle
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, LZMAError) as error:
        raise UserError(
            f"{str(path)!r} cannot be decompressed: {sources.one_line(error)}; decompress it first"
        ) from None
