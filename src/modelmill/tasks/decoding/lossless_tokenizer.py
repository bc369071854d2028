"""The trainer of tokenizers that lose nothing, for models that write: characters, or pieces of
words from bytes.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from modelmill.tasks.decoding.tokenizer import (
    TOKENIZER,
    Tokenizer,
    load_tokenizer,
)
from modelmill.types import Struct

SPECIAL = ["[PAD]", "[UNK]", "[END]"]
PAD, UNKNOWN, END = range(3)
"""Ids of a tokenizer that is trained here."""
CHARACTER = r"[\s\S]"


class Units(Struct, frozen=True, kw_only=True):
    """What a text is made of; travels in the manifest, with `tokenizer.json` beside it."""

    units: Annotated[
        Literal["char", "bpe"],
        Meta(description="characters, or pieces of words (byte pairs)"),
    ] = "char"
    vocabulary: Annotated[
        int, Meta(ge=300, le=200_000, description="most tokens of byte pairs")
    ] = 4096
    tokens: Annotated[int, Meta(extra={"derived": True})] = 0
    """Size of the trained vocabulary."""


def train(texts: Iterable[str], how: Units) -> Tokenizer:
    """A tokenizer whose tokens put together are the text again, but for characters that training
    never saw.
    """
    tokenizer, trainer = (
        _pieces(how.vocabulary) if how.units == "bpe" else _letters()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Tokenizer(tokenizer)


def _pieces(vocabulary: int) -> tuple[Any, Any]:
    """An untrained tokenizer of byte pairs, and its trainer."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Inner(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _letters() -> tuple[Any, Any]:
    """An untrained tokenizer of single characters, and its trainer."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Inner

    tokenizer = Inner(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(CHARACTER), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, trainers.WordLevelTrainer(
        special_tokens=SPECIAL, show_progress=False
    )


def learnt(texts: Iterable[str], how: Units, folder: Path) -> Tokenizer:
    """The tokenizer in `folder`: that of the version which the training starts from, or one that is
    trained now.
    """
    if how.tokens and (folder / TOKENIZER).exists():
        return load_tokenizer(folder / TOKENIZER)
    train(texts, how).save(folder / TOKENIZER)
    return load_tokenizer(folder / TOKENIZER)
