"""conversation: messages, each by somebody; what is sent to a model that chats."""

from collections.abc import Mapping
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
from modelmill.types import Struct

LONGEST = 1_000_000
"""Characters of a message."""
FORM = 'a list of {"role": ..., "content": ...}'


class Message(Struct, frozen=True):
    """What somebody said; `role` is who, such as user or assistant."""

    role: str
    content: str


class Conversation(Value, frozen=True):
    """Messages in their order; the model writes the next one."""

    messages: tuple[Message, ...]


def conversation_of(value: Any) -> Conversation:
    """A list of `{"role", "content"}`; the parts of a content are joined, and may be texts alone.

    Raises `InvalidInput` naming the message that is none.
    """
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"messages is {FORM}")
    messages = (_message(one, number) for number, one in enumerate(value))
    return Conversation(messages=tuple(messages))


def _message(value: Any, number: int) -> Message:
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        raise InvalidInput(f"message {number} wants a role and a content")
    content = _content(value, number)
    if len(content) > LONGEST:
        raise InvalidInput(
            f"message {number} has {len(content):,} characters; at most {LONGEST:,} are taken"
        )
    return Message(role=value["role"], content=content)


def _content(message: Mapping[str, Any], number: int) -> str:
    """The text of a message; raises `InvalidInput`."""
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        return ""  # it called a tool and said nothing
    if isinstance(content, list):
        return _joined(content, number)
    if not isinstance(content, str):
        raise InvalidInput(f"message {number} has no content")
    return content


def _joined(parts: list[Any], number: int) -> str:
    """The texts that a content consists of; raises `InvalidInput`."""
    texts = [
        part.get("text") if isinstance(part, dict) else None for part in parts
    ]
    whole = [text for text in texts if isinstance(text, str)]
    if len(whole) < len(texts):
        raise InvalidInput(
            f"message {number} has parts that are no texts; this model reads texts alone"
        )
    return "".join(whole)


@dataclass(frozen=True, kw_only=True)
class ConversationKind(InputKind):
    """Conversations, as JSON."""

    media: tuple[str, ...] = (JSON,)
    shown: Shown = "text"
    sent_as: ClassVar[SentAs] = "json"

    @property
    def in_json(self) -> str:
        """What JSON holds, as a message has it."""
        return FORM

    def encoded(self, value: Any, field: str) -> bytes:
        """The messages as JSON; raises `InvalidInput`."""
        try:
            return msgspec.json.encode(conversation_of(value).messages)
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"{field} holds half of a surrogate pair, which is no letter"
            ) from error

    def read(self, data: bytes) -> Conversation:
        """The conversation; raises `InvalidInput`."""
        return conversation_of(json_of(data, "the conversation"))


INPUT = ConversationKind(
    name="conversation",
    article="a conversation",
    parameter="messages",
    example=lambda: [
        {"role": "user", "content": "Does the mill grind slowly?"}
    ],
)
