"""Conversations as plain text, the same in training and serving."""

from collections.abc import Mapping, Sequence

NEXT = "\n\n"
"""Separates messages."""
ANSWER = "assistant:\n"
"""Begins an answer."""


def spoken(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages (dictionaries of `role` and `content`) as one text."""
    return "".join(
        f"{message['role']}:\n{message['content']}{NEXT}"
        for message in messages
    )
