"""Conversations as texts: a template of the model's own, rendered where it can do nothing else."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from modelmill.data.conversations import ANSWER, NEXT, spoken
from modelmill.errors import InvalidInput
from modelmill.tasks.kinds.conversation import LONGEST, Conversation, Message
from modelmill.types import Json

TEMPLATE = "chat_template.jinja"
ENDS = "\ufdd0"
"""In a rendered text the token that ends one; no character, so that no message can say it."""
ROLE = re.compile(r"[\w-]{1,40}")
TURN = re.compile(r"((?:^|\n\n)(?:user|system|assistant|tool|developer))(:\n)")
"""The beginning of a message; in a content a blank is put before its colon."""


def rendered(conversation: Conversation, folder: Path) -> str:
    """The text from which the answer goes on; raises `InvalidInput` where the template refuses the
    messages.
    """
    plain = [_plain(message) for message in conversation.messages]
    if not (folder / TEMPLATE).exists():
        return _spoken(plain) + ANSWER
    text = _filled_in(plain, folder)
    if len(text) > LONGEST:
        raise InvalidInput(
            f"the model's chat template makes more than {LONGEST:,} characters of these messages"
        )
    return text


def _plain(message: Message) -> dict[str, str]:
    """A message as templates read it; what would end a text is left out."""
    return {"role": message.role, "content": message.content.replace(ENDS, "")}


def _filled_in(messages: Sequence[Json], folder: Path) -> str:
    """The template with these messages; raises `InvalidInput`."""
    from jinja2.exceptions import TemplateError

    try:
        text = _template(folder).render(
            messages=messages,
            add_generation_prompt=True,
            bos_token="",
            eos_token=ENDS,
        )
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
    ) as error:
        raise InvalidInput(
            f"the model's chat template refuses these messages: {str(error)[:200]}"
        ) from error
    return str(text)


def _spoken(messages: Sequence[Mapping[str, str]]) -> str:
    """The text as training has it; what would begin somebody else's message begins none."""
    for number, message in enumerate(messages):
        if not ROLE.fullmatch(message["role"]):
            raise InvalidInput(
                f"message {number} has the role {message['role']!r:.40}: a word is wanted, such "
                "as user"
            )
    return spoken(
        [
            {**message, "content": TURN.sub(r"\1 \2", message["content"])}
            for message in messages
        ]
    )


def stops(folder: Path) -> tuple[str, ...]:
    """Texts with which the next message of somebody else begins; a template's own end is a
    token.
    """
    return (
        ()
        if (folder / TEMPLATE).exists()
        else (f"{NEXT}user:", f"{NEXT}system:")
    )


@lru_cache(maxsize=16)
def _template(folder: Path) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
    )
    sandbox.globals["raise_exception"] = (
        _refuse  # as templates of the Hugging Face hub call it
    )
    return sandbox.from_string((folder / TEMPLATE).read_text("utf-8"))


def _refuse(message: str) -> None:
    raise ValueError(message)
