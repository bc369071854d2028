"""token_ids: a text that its caller cut into tokens."""

from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from modelmill.errors import InvalidInput
from modelmill.tasks.kinds.base import (
    JSON,
    InputKind,
    SentAs,
    Shown,
    Value,
    json_of,
)

MOST = (1 << 32) - 1


class TokenIds(Value, frozen=True):
    """The ids of tokens, one at least."""

    ids: tuple[int, ...]


def token_ids_of(value: Any) -> TokenIds:
    """A list of whole numbers; raises `InvalidInput`."""
    if not isinstance(value, list) or not value:
        raise InvalidInput("token ids are a list of at least one whole number")
    for one in value:
        if type(one) is not int or not 0 <= one <= MOST:
            raise refused(one, MOST)
    return TokenIds(ids=tuple(value))


def refused(one: Any, most: int) -> InvalidInput:
    """The error for what is no token."""
    return InvalidInput(
        f"token ids are whole numbers from 0 to {most:,}, not {one!r:.40}"
    )


@dataclass(frozen=True, kw_only=True)
class TokenIdsKind(InputKind):
    """Token ids, as a list of JSON."""

    media: tuple[str, ...] = (JSON,)
    shown: Shown = "vector"
    sent_as: ClassVar[SentAs] = "json"

    @property
    def in_json(self) -> str:
        """What JSON holds, as a message has it."""
        return "a list of whole numbers"

    def encoded(self, value: Any, field: str) -> bytes:
        """The numbers as JSON; raises `InvalidInput`."""
        return msgspec.json.encode(token_ids_of(value).ids)

    def read(self, data: bytes) -> TokenIds:
        """The token ids; raises `InvalidInput`."""
        return token_ids_of(json_of(data, "the list of token ids"))


INPUT = TokenIdsKind(
    name="token_ids",
    article="token ids",
    parameter="token_ids",
    example=lambda: [5, 6, 7],
)
