"""Conversations as texts: a template of the model's own, rendered where it can do nothing else."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from modelmill.data.conversations import ANSWER, NEXT, spoken
from modelmill.errors import InvalidInput
from modelmill.types import Json

TEMPLATE = "chat_template.jinja"
LONGEST = 1_000_000
ENDS = "\ufdd0"
"""In a rendered text the token that ends one; no character, so that no message can say it."""
ROLE = re.compile(r"[\w-]{1,40}")
TURN = re.compile(r"((?:^|\n\n)(?:user|system|assistant|tool|developer))(:\n)")
"""The beginning of a message; in a content a blank is put before its colon."""


def rendered(messages: Any, folder: Path) -> str:
    """The text from which the answer goes on; raises `InvalidInput` for messages that are none."""
    plain = [
        _plain(message, number) for number, message in enumerate(_listed(messages))
    ]
    if not (folder / TEMPLATE).exists():
        return _spoken(plain) + ANSWER
    from jinja2.exceptions import TemplateError

    try:
        text = _template(folder).render(
            messages=plain, add_generation_prompt=True, bos_token="", eos_token=ENDS
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
    if len(text) > LONGEST:
        raise InvalidInput(
            f"the model's chat template makes more than {LONGEST:,} characters of these messages"
        )
    return str(text)


def _spoken(messages: Sequence[Json]) -> str:
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
    return () if (folder / TEMPLATE).exists() else (f"{NEXT}user:", f"{NEXT}system:")


def _listed(messages: Any) -> Sequence[Any]:
    if not isinstance(messages, list) or not messages:
        raise InvalidInput('messages is a list of {"role": ..., "content": ...}')
    return messages


def _plain(message: Any, number: int) -> Json:
    """A message whose content is one text; its parts may be texts alone."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidInput(f"message {number} wants a role and a content")
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        content = ""  # it called a tool and said nothing
    if isinstance(content, list):
        if not all(
            isinstance(part, dict) and isinstance(part.get("text"), str)
            for part in content
        ):
            raise InvalidInput(
                f"message {number} has parts that are no texts; this model reads texts alone"
            )
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise InvalidInput(f"message {number} has no content")
    if len(content) > LONGEST:
        raise InvalidInput(
            f"message {number} has {len(content):,} characters; at most {LONGEST:,} are taken"
        )
    return {"role": message["role"], "content": content.replace(ENDS, "")}


@lru_cache(maxsize=16)
def _template(folder: Path) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.globals["raise_exception"] = (
        _refuse  # as templates of the Hugging Face hub call it
    )
    return sandbox.from_string((folder / TEMPLATE).read_text("utf-8"))


def _refuse(message: str) -> None:
    raise ValueError(message)
