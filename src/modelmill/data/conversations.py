"""Conversations as plain text, one way in training and in serving."""

from collections.abc import Mapping, Sequence

NEXT = "\n\n"
"""Stands between messages."""
ANSWER = "assistant:\n"
"""Stands before an answer."""


def spoken(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages (`role`, `content`) as one text."""
    return "".join(
        f"{message['role']}:\n{message['content']}{NEXT}" for message in messages
    )
