"""The tokenizer of a bundle: `tokenizer.json`, whoever trained it.

Which tokens are special, and what they stand for, is read from the file: by the names that our own
trainers use (`text_tokenizer`, `lossless_tokenizer`) and those of the Hugging Face hub.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelmill.errors import BundleCorrupt

if TYPE_CHECKING:
    import tokenizers

TOKENIZER = "tokenizer.json"
PADS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
UNKNOWNS = ("[UNK]", "<unk>", "<|unk|>")
MASKS = ("[MASK]", "<mask>", "<|mask|>")
ENDS = (
    "[END]",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<eos>",
    "</s>",
)
"""Names of special tokens by what they stand for; the first one that a file has is taken."""
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""A token of a single byte, as SentencePiece names them."""


class Encoded(NamedTuple):
    """Token ids, and where in the text each of them stands: (first character, one after the
    last).
    """

    ids: list[int]
    places: list[tuple[int, int]]


class Tokenizer:
    """Texts to token ids and back. What a caller writes is text: "[PAD]" has five letters."""

    def __init__(self, inner: "tokenizers.Tokenizer") -> None:
        self._inner = inner
        inner.encode_special_tokens = True
        names = _special_tokens(inner)
        self.special = frozenset(names.values())
        """Ids of tokens that are no text."""
        self._special = names
        self.ends = frozenset(
            names[name] for name in (*ENDS, *PADS) if name in names
        )
        """Tokens that end an answer."""

    @property
    def pad(self) -> int:
        """The token that fills up a row of ids, 0 where the file names none."""
        return self._find(PADS) or 0

    @property
    def end(self) -> int:
        """The token after a whole text; raises `BundleCorrupt` where there is none."""
        return self._named("ends a text", ENDS)

    @property
    def mask(self) -> int:
        """The token for a word that is hidden; raises `BundleCorrupt` where there is none."""
        return self._named("hides a word", MASKS)

    @property
    def unknown(self) -> int | None:
        """The token for what is not in the vocabulary; None where everything is."""
        return self._find(UNKNOWNS)

    @property
    def size(self) -> int:
        """How many token ids there are."""
        return int(self._inner.get_vocab_size())

    def encode(
        self, text: str, marks: Mapping[str, int] | None = None
    ) -> list[int]:
        """Token ids of a text, in which each of the `marks` stands for a special token."""
        if not marks:
            return self.encode_with_places(text).ids
        ids: list[int] = []
        parts = re.split(f"({'|'.join(map(re.escape, marks))})", text)
        for number, part in enumerate(parts):
            ids += [marks[part]] if number % 2 else self.encode(part)
        return ids

    def encode_with_places(self, text: str) -> Encoded:
        """Token ids of a text and their places in it."""
        found = self._inner.encode(
            without_surrogates(text), add_special_tokens=False
        )
        return Encoded(
            list(found.ids), [(start, end) for start, end in found.offsets]
        )

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, on all threads."""
        clean = [without_surrogates(text) for text in texts]
        found = self._inner.encode_batch(clean, add_special_tokens=False)
        return [list(one.ids) for one in found]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; special tokens are named in it if they are wanted."""
        return str(
            self._inner.decode(list(ids), skip_special_tokens=not special)
        )

    def stream(self) -> Callable[[int], str]:
        """What each further token adds to a text: nothing while a character is not whole."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._inner, token) or ""

    def name_of(self, token: int) -> str:
        """A token as the vocabulary has it."""
        return str(self._inner.id_to_token(token))

    def id_of(self, name: str) -> int | None:
        """The id of a token that the vocabulary has under this name."""
        found = self._inner.token_to_id(name)
        return None if found is None else int(found)

    def bytes_of(self, token: int) -> bytes | None:
        """The UTF-8 that a token stands for, which may be a part of a letter; None for a special
        one.
        """
        from tokenizers import decoders

        if token in self.special:
            return None
        name = self.name_of(token)
        if isinstance(self._inner.decoder, decoders.ByteLevel):
            return bytes(map(_bytes().__getitem__, name))
        if byte := BYTE.fullmatch(name):
            return bytes.fromhex(byte[1])
        if isinstance(self._inner.decoder, decoders.Fuse):
            return name.encode()
        return name.replace("▁", " ").encode()

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        self._inner.save(str(path))

    def _find(self, wanted: Sequence[str]) -> int | None:
        return next(
            (self._special[one] for one in wanted if one in self._special), None
        )

    def _named(self, what: str, wanted: Sequence[str]) -> int:
        found = self._find(wanted)
        if found is None:
            raise BundleCorrupt(
                f"{TOKENIZER} has no special token that {what}, such as {wanted[0]}"
            )
        return found


def _special_tokens(inner: "tokenizers.Tokenizer") -> dict[str, int]:
    """The ids of special tokens by their names."""
    return {
        str(token.content): int(number)
        for number, token in inner.get_added_tokens_decoder().items()
        if token.special
    }


def without_surrogates(text: str) -> str:
    """A lone surrogate is no character: it reads as an unknown one."""
    return text.encode("utf-8", "replace").decode()


@lru_cache(maxsize=8)
def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a bundle; raises `BundleCorrupt`."""
    from tokenizers import Tokenizer as Inner

    try:
        return Tokenizer(Inner.from_file(str(path)))
    except Exception as error:  # the library raises bare `Exception`
        raise BundleCorrupt(f"{path.name} can't be read: {error}") from error


@lru_cache(maxsize=1)
def _bytes() -> dict[str, int]:
    """The bytes that the letters of byte-level tokens stand for: what can be printed is itself, the
    others follow.
    """
    printed = [*_codes("!", "~"), *_codes("¡", "¬"), *_codes("®", "ÿ")]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


def _codes(first: str, last: str) -> range:
    return range(ord(first), ord(last) + 1)
