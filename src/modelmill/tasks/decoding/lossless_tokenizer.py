"""The trainer of tokenizers that lose nothing, for models that write: characters, or pieces of
words from bytes.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from modelmill.tasks.decoding.tokenizer import TOKENIZER, Tokenizer, load_tokenizer
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
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Inner

    if how.units == "bpe":
        tokenizer = Inner(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=how.vocabulary,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return Tokenizer(tokenizer)
    tokenizer = Inner(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(CHARACTER), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    )
    return Tokenizer(tokenizer)


def learnt(texts: Iterable[str], how: Units, folder: Path) -> Tokenizer:
    """The tokenizer in `folder`: that of the version which the training starts from, or one that is
    trained now.
    """
    if how.tokens and (folder / TOKENIZER).exists():
        return load_tokenizer(folder / TOKENIZER)
    train(texts, how).save(folder / TOKENIZER)
    return load_tokenizer(folder / TOKENIZER)
