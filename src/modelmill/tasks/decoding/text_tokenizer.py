"""Texts in, token ids out: the decoding that tasks of words share, and the trainer of their
tokenizer.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from modelmill.errors import InvalidInput
from modelmill.tasks.base import Choice, Facts, Raw
from modelmill.tasks.decoding.padding import padded
from modelmill.tasks.decoding.tokenizer import (
    TOKENIZER,
    Tokenizer,
    load_tokenizer,
    without_surrogates,
)
from modelmill.tasks.kinds.token_ids import TokenIds, refused
from modelmill.tasks.training_settings import passes
from modelmill.types import Struct, TensorSpec

MASK = "[MASK]"
SPECIAL = ["[PAD]", "[UNK]", MASK]
"""Ids 0, 1 and 2 of a tokenizer that is trained here."""
MAX_CHARACTERS = 200_000
EAST = "\u2e80"
"""From here on scripts have no spaces between words, roughly."""
MOSTLY = 0.5
PIECES = 8000
PIECE = 0.6
"""Share of words without spaces from which pieces are learnt, how many of them, and those that a
character takes.
"""
NOTED = 1024
LETTERS = 64
"""More characters than a token has, on average over a text."""

# Scripts written without spaces: each character, with its marks, is a word.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
WORD = rf"(?:(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}_])+"
WORDS = rf"{UNSPACED}|{WORD}(?:'{WORD})*|[^\s]"


class Preprocessing(Struct, frozen=True, kw_only=True):
    """How a text becomes token ids; travels in the manifest, with `tokenizer.json` beside it."""

    tokenizer: Annotated[
        Literal["word", "char", "bpe"],
        msgspec.Meta(
            description="units: words (single characters in scripts without spaces), characters "
            "or BPE"
        ),
    ] = "word"
    vocabulary: Annotated[
        int, msgspec.Meta(ge=10, le=1_000_000, description="most token ids")
    ] = 10_000
    minimum_count: Annotated[
        int, msgspec.Meta(ge=1, description="times a token occurs to be kept")
    ] = 2
    lowercase: Annotated[bool, msgspec.Meta(description="ignore case")] = True
    max_length: Annotated[
        int, msgspec.Meta(ge=0, le=4096, description="tokens; 0: from the data")
    ] = 0
    length_limit: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=4096,
            description="most tokens when the length is taken from the data",
        ),
    ] = 256
    tokens: Annotated[int, msgspec.Meta(extra={"derived": True})] = 0
    """Size of the trained vocabulary."""


class Look(Struct, frozen=True, kw_only=True):
    """What texts are like: how many words one has on average, where a character without spaces
    around it is a word.

    `unspaced` is the share of these among all words.
    """

    words: float
    unspaced: float = 0.0


def look(samples: Sequence[Raw]) -> Look:
    """About how long all samples are."""
    texts = [str(sample) for sample in samples]
    alone = sum(letter >= EAST for text in texts for letter in text)
    words = alone + sum(len(text.split()) for text in texts)
    return Look(
        words=words / max(1, len(texts)), unspaced=alone / max(1, words)
    )


def sizes(arrays: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Tokens of each text [items]: batches are made of texts of about one length."""
    return np.asarray((arrays["ids"] != 0).sum(1))


def pieces(facts: Facts) -> Iterator[Choice]:
    """In scripts without spaces pieces of words that are learnt from the texts: a character alone
    says too little.
    """
    if facts.inputs.unspaced > MOSTLY:
        settings = {"tokenizer": "bpe", "vocabulary": PIECES}
        yield Choice(
            why="most words have no spaces around them: pieces are learnt from the texts",
            settings=settings,
        )


def epochs(
    facts: Facts, how: Preprocessing, usual: int, enough: int, least: int = 4
) -> Choice:
    """The `usual` passes over up to `enough` words to train on, and fewer over more, so that they
    take as long.
    """
    share = PIECE if facts.inputs.unspaced > MOSTLY else 1.0
    words_of_a_text = min(facts.inputs.words * share, how.length_limit)
    words = round(facts.counts["train"] * words_of_a_text)
    found = passes(words, usual, enough, least)
    return Choice(
        why=f"about {words:,} words are seen {found} times",
        settings={"epochs": found},
    )


def text_of(data: Raw) -> str:
    """The text itself; raises `InvalidInput` when there is none."""
    if not isinstance(data, str):
        raise InvalidInput("a text is wanted")
    if not data.strip():
        raise InvalidInput("the text is empty")
    if len(data) > MAX_CHARACTERS:
        raise InvalidInput(
            f"the text has {len(data):,} characters; at most {MAX_CHARACTERS:,} are taken"
        )
    return data


def beginning(data: Raw, folder: Path, most: int) -> str:
    """As much of a text as has so many tokens at most."""
    text = without_surrogates(text_of(data))
    encoded = load_tokenizer(folder / TOKENIZER).encode_with_places(text)
    return text if len(encoded.ids) <= most else text[: encoded.places[most][0]]


def fingerprint(data: Raw) -> str:
    """The sha256 of the stripped text."""
    return hashlib.sha256(
        text_of(data).strip().encode("utf-8", "surrogatepass")
    ).hexdigest()


def decode(data: Raw, how: Preprocessing, folder: Path) -> np.ndarray[Any, Any]:
    """Token ids, int64 [max_length], cut or padded."""
    # Far more characters than tokens are kept: normalising all of a book for its first page would
    # take seconds.
    text = text_of(data)[: how.max_length * LETTERS]
    tokenizer = load_tokenizer(folder / TOKENIZER)
    return padded(
        tokenizer.encode(text), how.max_length, np.int64, tokenizer.pad
    )


def checked_ids(given: TokenIds, tokens: int) -> list[int]:
    """Token ids of a caller who cut the text; raises `InvalidInput` for one that is none of the
    model's.
    """
    if (most := max(given.ids)) >= tokens:
        raise refused(most, tokens - 1)
    return list(given.ids)


def noted(text: str) -> np.ndarray[Any, Any]:
    """A text that goes by the model: its length and its UTF-8, filled up so that texts of about one
    length agree.
    """
    data = without_surrogates(text).encode()
    row = np.zeros(4 + -(-max(1, len(data)) // NOTED) * NOTED, np.uint8)
    row[:4] = np.frombuffer(len(data).to_bytes(4, "little"), np.uint8)
    row[4 : 4 + len(data)] = np.frombuffer(data, np.uint8)
    return row


def text_of_note(note: np.ndarray[Any, Any]) -> str:
    """The text of a note."""
    size = int.from_bytes(note[:4].tobytes(), "little")
    return note[4 : 4 + size].tobytes().decode()


def prepare(
    texts: Iterable[Raw], how: Preprocessing, folder: Path
) -> Preprocessing:
    """Train the tokenizer into `folder`, and take the length from the longest hundredth of the
    texts.
    """
    kept = [without_surrogates(text_of(text)) for text in texts]
    tokenizer = _learnt(kept, how, folder)
    length = how.max_length
    if not length:
        lengths = [len(ids) for ids in tokenizer.encode_all(kept)]
        length = max(1, min(how.length_limit, int(np.percentile(lengths, 99))))
    return msgspec.structs.replace(
        how, max_length=length, tokens=tokenizer.size
    )


def _learnt(texts: list[str], how: Preprocessing, folder: Path) -> Tokenizer:
    """The tokenizer in `folder`: that of the version which the training starts from, or one that is
    trained now.
    """
    if how.tokens and (folder / TOKENIZER).exists():
        return load_tokenizer(folder / TOKENIZER)
    tokenizer = train_tokenizer(texts, how)
    tokenizer.save(folder / TOKENIZER)
    return tokenizer


def tensor(how: Preprocessing) -> TensorSpec:
    """The model's input: token ids, batch first."""
    return TensorSpec(name="ids", datatype="INT64", shape=[-1, how.max_length])


def train_tokenizer(texts: list[str], how: Preprocessing) -> Tokenizer:
    """A tokenizer of the training texts, for any language."""
    from tokenizers import normalizers

    tokenizer, trainer = _pieces(how) if how.tokenizer == "bpe" else _words(how)
    steps = [
        normalizers.NFKC(),
        *([normalizers.Lowercase()] if how.lowercase else []),
    ]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.train_from_iterator(texts, trainer)
    return Tokenizer(tokenizer)


def _pieces(how: Preprocessing) -> tuple[Any, Any]:
    """An untrained tokenizer of pieces of words (BPE), and its trainer."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = Inner(models.BPE(unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    return tokenizer, trainers.BpeTrainer(**_options(how), max_token_length=16)


def _words(how: Preprocessing) -> tuple[Any, Any]:
    """An untrained tokenizer of whole words or single characters, and its trainer."""
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Inner

    tokenizer = Inner(models.WordLevel(unk_token=SPECIAL[1]))
    pattern = Regex(WORDS if how.tokenizer == "word" else r"\X")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        pattern, "removed", invert=True
    )
    return tokenizer, trainers.WordLevelTrainer(**_options(how))


def _options(how: Preprocessing) -> dict[str, Any]:
    """Options of both trainers."""
    return {
        "vocab_size": how.vocabulary,
        "min_frequency": how.minimum_count,
        "special_tokens": SPECIAL,
        "show_progress": False,
    }
