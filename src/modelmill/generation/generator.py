"""Continuous batching of generated texts: prefill, decoding steps, stop conditions.

A new text joins at the next step, and one that ends or is cancelled leaves at once. Nothing here
waits or knows of processes or sockets: `Generator.tick` does one step and yields its pieces.
"""

from collections import deque
from collections.abc import Iterator, Sequence, Set
from typing import Any, Protocol

import numpy as np

from modelmill.generation.sampling import choose, logprobs
from modelmill.streams import LENGTH, STOP, Piece, Text

Logits = np.ndarray[Any, np.dtype[np.float32]]
CHUNK = 256
"""Tokens of a prompt that are prefilled at a time: the other texts wait no longer for their next
token.
"""


class Steps(Protocol):
    """A model that decodes texts in slots; the slots in use are the first ones."""

    slots: int
    places: int

    def prefill(self, slot: int, ids: Sequence[int], past: int) -> Logits:
        """Run tokens of a prompt after `past` earlier ones; the logits after the last [tokens]."""

    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> Logits:
        """One token for each text, at its length so far; the logits of the next [texts, tokens]."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""


class Generator:
    """The waiting and active texts of one worker; at most `most` of the engine's slots are used
    (0: all).
    """

    def __init__(self, steps: Steps, most: int = 0) -> None:
        self._steps = steps
        self.slots = min(most, steps.slots) if most else steps.slots
        self._waiting: deque[Text] = deque()
        self._active: list[Text] = []
        self._reading: Text | None = None
        self._read = 0

    @property
    def busy(self) -> bool:
        """Whether there are any texts."""
        return bool(self._waiting or self._active or self._reading)

    def add(self, text: Text) -> None:
        """Queue a text; it starts when a slot is free."""
        self._waiting.append(text)

    def cancel(self, names: Set[Any]) -> None:
        """Drop texts at once."""
        self._waiting = deque(
            text for text in self._waiting if text.name not in names
        )
        if self._reading is not None and self._reading.name in names:
            self._reading = None
        for slot in reversed(range(len(self._active))):
            if self._active[slot].name in names:
                self._free_slot(slot)

    def tick(self) -> Iterator[Piece]:
        """Decode one token of each active text, and prefill one chunk of the next prompt."""
        if self._active:
            yield from self._decode()
        if (
            self._reading is None
            and self._waiting
            and len(self._active) < self.slots
        ):
            self._reading, self._read = self._waiting.popleft(), 0
        if self._reading is not None:
            yield from self._prefill(self._reading)

    def _decode(self) -> Iterator[Piece]:
        """One more token of each active text."""
        tokens = [text.tokens[-1] for text in self._active]
        lengths = [text.length for text in self._active]
        logits = self._steps.step(tokens, lengths)
        yield from self._pieces(range(len(self._active)), logits)

    def _prefill(self, text: Text) -> Iterator[Piece]:
        """Prefill a chunk of a prompt in the first free slot; after the last chunk the text is
        active.
        """
        part = text.prompt[self._read : self._read + CHUNK]
        logits = self._steps.prefill(len(self._active), part, self._read)
        self._read += len(part)
        if self._read == len(text.prompt):
            self._reading = None
            self._active.append(text)
            yield from self._pieces([len(self._active) - 1], logits[None])

    def _pieces(self, slots: Sequence[int], logits: Logits) -> Iterator[Piece]:
        pieces = [
            self._next_piece(self._active[slot], row)
            for slot, row in zip(slots, logits, strict=True)
        ]
        for slot, piece in zip(reversed(slots), reversed(pieces), strict=True):
            if piece.ended:
                self._free_slot(slot)
        yield from pieces

    def _next_piece(self, text: Text, logits: Logits) -> Piece:
        """The piece of a text's next token."""
        how = text.how
        token = choose(logits, how, len(text.tokens), _penalised(text))
        if how.logprobs < 0:
            return grow(text, token, self._steps.places)
        own, near = logprobs(logits, token, how.logprobs)
        return grow(text, token, self._steps.places, own, near)

    def _free_slot(self, slot: int) -> None:
        """Free a slot: the last active text moves into it."""
        last = len(self._active) - 1
        if slot != last:
            self._steps.move(last, slot, self._active[last].length)
            self._active[slot] = self._active[last]
        self._active.pop()
        # The prompt that is being prefilled stays in the first free slot.
        if self._reading is not None and self._read:
            self._steps.move(last + 1, last, self._read)


def _penalised(text: Text) -> np.ndarray[Any, Any] | None:
    """The tokens that a repetition penalty applies to."""
    if text.how.repetition_penalty == 1:
        return None
    return np.array([*text.prompt, *text.tokens])


def grow(
    text: Text,
    token: int,
    places: int,
    logprob: float | None = None,
    near: Sequence[tuple[int, float]] = (),
) -> Piece:
    """Add a token to a text; returns the piece to emit. `places` is the limit of prompt and answer.

    Characters that may become a stop sequence are held back. An engine that chooses tokens by
    itself makes its pieces with this.
    """
    place = len(text.text)
    fresh, ended = _append(text, token, places)
    text.emitted += len(fresh)
    return Piece(
        text.name,
        fresh,
        token,
        ended,
        len(text.prompt),
        len(text.tokens),
        logprob,
        tuple(near),
        place,
    )


def _append(text: Text, token: int, places: int) -> tuple[str, str]:
    """The text that may be emitted with a token, and why it ends, if it does."""
    text.tokens.append(token)
    is_end = token in text.ends
    if not is_end:
        text.text += text.pieces(token)
    fresh, stopped = _safe_text(text)
    ended = _end_reason(text, is_end or stopped, places)
    if ended and not stopped:
        fresh = text.text[text.emitted :]
    return fresh, ended


def _end_reason(text: Text, stopped: bool, places: int) -> str:
    """Why a text ends with its last token; empty while it goes on."""
    if stopped:
        return STOP
    is_full = (
        len(text.tokens) >= text.how.max_tokens or text.length + 1 >= places
    )
    return LENGTH if is_full else ""


def _safe_text(text: Text) -> tuple[str, bool]:
    """Text that is safe to emit now (a tail that may become a stop sequence is held back), and
    whether a stop sequence was reached.
    """
    place = _stop_place(text)
    if place is not None:
        return text.text[text.emitted : max(text.emitted, place)], True
    held = max((_overlap(text.text, stop) for stop in text.how.stop), default=0)
    return text.text[
        text.emitted : max(text.emitted, len(text.text) - held)
    ], False


def _stop_place(text: Text) -> int | None:
    """Where the first stop sequence begins; None while there is none."""
    places = [
        text.text.find(stop, max(0, text.emitted - len(stop)))
        for stop in text.how.stop
    ]
    return min((place for place in places if place >= 0), default=None)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper prefix of `stop` that ends the text."""
    return next(
        (
            size
            for size in range(min(len(text), len(stop) - 1), 0, -1)
            if text.endswith(stop[:size])
        ),
        0,
    )
