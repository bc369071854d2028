"""Prompts: the tokens that an answer goes on from, as many as the model looks back on."""

import msgspec

from modelmill.errors import InvalidInput
from modelmill.streams import Sampling
from modelmill.tasks.base import Context, Raw
from modelmill.tasks.decoding.text_tokenizer import LETTERS, checked_ids
from modelmill.tasks.decoding.tokenizer import (
    TOKENIZER,
    Tokenizer,
    load_tokenizer,
)
from modelmill.tasks.kinds.conversation import Conversation
from modelmill.tasks.kinds.token_ids import TokenIds
from modelmill.tasks.text_generation.chat_template import ENDS, rendered, stops


def as_text(data: Raw, how: Sampling, context: Context) -> tuple[Raw, Sampling]:
    """What the answer goes on from, and where it stops: a conversation becomes a text, and the
    answer to it stops where somebody else would speak. Raises `InvalidInput`.
    """
    if not isinstance(data, Conversation):
        return data, how
    ends = (*how.stop, *stops(context.folder))
    return rendered(data, context.folder), msgspec.structs.replace(
        how, stop=ends
    )


def prompt_of(data: Raw, context: Context, truncate: int | None) -> list[int]:
    """The tokens of a text, or those that were given; the last `truncate` of them.

    Raises `InvalidInput` for more than the model looks back on.
    """
    last = min(truncate, context.preprocessing.context - 1) if truncate else 0
    if isinstance(data, TokenIds):
        ids = checked_ids(data, context.preprocessing.tokens)
    else:
        text = text_of(data)
        ids = tokens_of(text[-last * LETTERS :] if last else text, context)
    return fitting(ids[-last:] if last else ids, context)


def text_of(data: Raw) -> str:
    """A text with a letter; raises `InvalidInput`."""
    if not isinstance(data, str):
        raise InvalidInput("a text is wanted")
    if not data.strip():
        raise InvalidInput("a text is wanted, not an empty one")
    return data


def tokens_of(text: str, context: Context) -> list[int]:
    """The tokens of a text; raises `InvalidInput` for one that is longer than any prompt."""
    size = context.preprocessing.context
    # The tokens of a book are not counted: all other texts would wait for it
    if len(text) > size * LETTERS:
        raise InvalidInput(
            f"the text has {len(text):,} characters, and the model a context of {size:,} tokens: "
            "send less (the parameter truncate=N keeps the last N)"
        )
    tokenizer = tokenizer_of(context)
    if ENDS not in text:
        return tokenizer.encode(text)
    return tokenizer.encode(text, {ENDS: tokenizer.end})


def fitting(ids: list[int], context: Context) -> list[int]:
    """The same tokens, which leave room for one more; raises `InvalidInput`."""
    size = context.preprocessing.context
    if len(ids) > size - 1:
        raise InvalidInput(
            f"the prompt has {len(ids):,} tokens, and the model a context of {size:,}: send at "
            f"most {size - 1:,} (the parameter truncate=N keeps the last N)"
        )
    return ids


def tokenizer_of(context: Context) -> Tokenizer:
    """The tokenizer of the bundle."""
    return load_tokenizer(context.folder / TOKENIZER)
