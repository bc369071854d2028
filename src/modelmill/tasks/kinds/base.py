"""The contract of a kind: what callers send or are answered, how it travels and what reaches a
task.

A kind is a module of this folder with an `INPUT`, an `OUTPUT`, or both: a picture is sent to some
models and answered by others. Importing it is cheap: an example is made when it is asked for.
"""

import binascii
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec

from modelmill.errors import InvalidInput
from modelmill.types import Struct

JSON = "application/json"
BYTES = "application/octet-stream"
PLAIN = "text/plain"
SentAs = Literal["file", "text", "number", "json", "tensors"]
"""A file goes as it is, or in JSON as base64; a number goes as a text or a JSON number."""
Shown = Literal[
    "text",
    "picture",
    "player",
    "film",
    "boxes",
    "masks",
    "labels",
    "vector",
    "json",
]
"""What a screen makes of it: a player is one for sound."""


class Value(Struct, frozen=True):
    """An input that is neither a text nor a file once it was read, such as a conversation."""


Taken = bytes | str | Value
"""What reaches a task of an input that a caller sent."""


@dataclass(frozen=True, kw_only=True)
class InputKind:
    """A kind of input that is sent as a file."""

    name: str
    article: str
    """As a sentence has it: "an image"."""
    media: tuple[str, ...] = (BYTES, JSON)
    """The media types of bodies that hold it, the usual one first. In JSON it has the form of the
    protocol, in others a body is the input itself.
    """
    example: Callable[[], Any]
    """A small valid one: the bytes of a file, or what JSON holds."""
    shown: Shown = "json"
    optional: bool = False
    """Whether it may be left out."""
    parameter: str = ""
    """The name of a parameter as which it may be sent, too, beside any other input."""
    sent_as: ClassVar[SentAs] = "file"

    @property
    def in_json(self) -> str:
        """What JSON holds, as a message has it."""
        return f"{self.article} as base64, as a string"

    @property
    def is_text(self) -> bool:
        """Whether a body holds it as UTF-8, and not as the bytes of a file."""
        return self.sent_as in ("text", "number", "json")

    def encoded(self, value: Any, field: str) -> bytes:
        """A value of JSON as it goes to a worker; raises `InvalidInput`, whose message calls it
        `field`.
        """
        packed = isinstance(value, dict) and value.keys() == {"b64"}
        text = self._text(value["b64"] if packed else value, field)
        try:
            return _from_base64(text)
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(
                f"{field} is not valid base64 of {self.article}"
            ) from error

    def read(self, data: bytes) -> Taken:
        """What reaches the task, of what goes to a worker; raises `InvalidInput`."""
        return data

    def sample(self) -> Taken:
        """The example as it reaches a task."""
        made = self.example()
        return self.read(
            made if isinstance(made, bytes) else self.encoded(made, self.name)
        )

    def _text(self, value: Any, field: str) -> str:
        if not isinstance(value, str):
            raise InvalidInput(
                f"{field} holds {self.in_json}, not {word_for(value)}"
            )
        return value


@dataclass(frozen=True, kw_only=True)
class TextKind(InputKind):
    """A kind of input that is sent as a text."""

    media: tuple[str, ...] = (PLAIN, JSON)
    shown: Shown = "text"
    sent_as: ClassVar[SentAs] = "text"

    @property
    def in_json(self) -> str:
        """What JSON holds, as a message has it."""
        return f"{self.article}, as a string"

    def encoded(self, value: Any, field: str) -> bytes:
        """The text as UTF-8; raises `InvalidInput`."""
        return self._text(value, field).encode("utf-8", "surrogatepass")

    def read(self, data: bytes) -> Taken:
        """The text; raises `InvalidInput`."""
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput("the text is not valid UTF-8") from error


@dataclass(frozen=True, kw_only=True)
class NumberKind(TextKind):
    """A kind of input that is a whole number, which is also taken as a text."""

    sent_as: ClassVar[SentAs] = "number"

    @property
    def in_json(self) -> str:
        """What JSON holds, as a message has it."""
        nothing = ", or nothing" if self.optional else ""
        return f"{self.article} (a whole number){nothing}, as a string"

    def encoded(self, value: Any, field: str) -> bytes:
        """The digits; none for what may be left out. Raises `InvalidInput`."""
        if type(value) is int:
            value = str(value)
        if value is None and self.optional:
            value = ""
        return super().encoded(value, field)


@dataclass(frozen=True, kw_only=True)
class JsonKind(TextKind):
    """A kind of input that is an object of JSON, or the text of one."""

    media: tuple[str, ...] = (JSON, PLAIN)
    shown: Shown = "json"
    form: str
    """The form of the JSON, as a message has it."""
    sent_as: ClassVar[SentAs] = "json"

    @property
    def in_json(self) -> str:
        """What JSON holds, as a message has it."""
        return self.form

    def encoded(self, value: Any, field: str) -> bytes:
        """The JSON as UTF-8; raises `InvalidInput`."""
        if isinstance(value, dict):
            return msgspec.json.encode(value)
        return super().encoded(value, field)


@dataclass(frozen=True, kw_only=True)
class TensorKind(InputKind):
    """What a model without a task takes: tensors, as the Open Inference Protocol sends them."""

    sent_as: ClassVar[SentAs] = "tensors"


@dataclass(frozen=True, kw_only=True)
class OutputKind:
    """A kind of answer. All are JSON; `media` may name a file as which it is sent, too."""

    name: str
    meaning: str
    example: Callable[[], Any]
    """A small one, as JSON has it."""
    media: tuple[str, ...] = (JSON,)
    shown: Shown = "json"


def _from_base64(text: str) -> bytes:
    """The bytes of base64, also of a data URL."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    return b64decode(encoded, validate=True)


def word_for(value: Any) -> str:
    """A value of JSON that is not what was wanted, as a message has it."""
    words = {
        dict: "an object",
        list: "a list",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
    }
    return words.get(type(value), "null")


def json_of(data: bytes, what: str) -> Any:
    """The JSON that an input is; raises `InvalidInput`, whose message calls it `what`."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{what} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidInput(f"{what} is nested too deeply") from error
