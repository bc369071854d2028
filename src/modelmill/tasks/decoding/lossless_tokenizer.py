"""Texts as tokens and back without loss, for models that write: characters, or pieces of words from
bytes.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from modelmill.tasks.decoding.text_tokenizer import TOKENIZER, load_tokenizer
from modelmill.types import Struct

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[END]"]
PAD, UNKNOWN, END = range(3)
CHARACTER = r"[\s\S]"

__all__ = [
    "END",
    "PAD",
    "SPECIAL",
    "TOKENIZER",
    "UNKNOWN",
    "Units",
    "bytes_of",
    "learnt",
    "load_tokenizer",
    "pieces",
    "train",
]


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


def train(texts: Iterable[str], how: Units) -> "Tokenizer":
    """A tokenizer whose tokens put together are the text again, but for characters that training
    never saw.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if how.units == "bpe":
        tokenizer = Tokenizer(models.BPE())
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
        return tokenizer
    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(CHARACTER), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    )
    return tokenizer


def learnt(texts: Iterable[str], how: Units, folder: Path) -> "Tokenizer":
    """The tokenizer in `folder`: that of the version which the training starts from, or one that is
    trained now.
    """
    if how.tokens and (folder / TOKENIZER).exists():
        return load_tokenizer(folder / TOKENIZER)
    train(texts, how).save(str(folder / TOKENIZER))
    return load_tokenizer(folder / TOKENIZER)


def bytes_of(tokenizer: "Tokenizer", token: int) -> bytes | None:
    """The UTF-8 that a token stands for, which may be a part of a letter; None for a special
    one.
    """
    from tokenizers import decoders

    if token < len(SPECIAL):
        return None
    name = str(tokenizer.id_to_token(token))
    return (
        bytes(map(_bytes().__getitem__, name))
        if isinstance(tokenizer.decoder, decoders.ByteLevel)
        else name.encode()
    )


@lru_cache(maxsize=1)
def _bytes() -> dict[str, int]:
    """The bytes that the letters of byte-level tokens stand for: what can be printed is itself, the
    others follow.
    """
    printed = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


def pieces(tokenizer: "Tokenizer") -> Callable[[int], str]:
    """What each further token adds to a text: nothing while a character is not whole."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    return lambda token: stream.step(tokenizer, token) or ""
