"""Texts that grow token by token, many at once: who is read, who steps, who has ended.

A text that comes joins at the next step, and one that ends or is cancelled leaves at once. Nothing
here waits, and nothing knows of processes or sockets: `Generator.tick` does one step and says what
came of it.
"""

from collections import deque
from collections.abc import Iterator, Sequence, Set
from typing import Any, Protocol

import numpy as np

from modelmill.generation.sampling import choose, logprobs
from modelmill.streams import LENGTH, STOP, Piece, Text

Logits = np.ndarray[Any, np.dtype[np.float32]]
CHUNK = 256
"""Tokens of a prompt that are read at a time: the texts beside it wait no longer than that for
their next token.
"""


class Steps(Protocol):
    """What a model does for texts in slots; those in use are the first ones."""

    slots: int
    places: int

    def prefill(self, slot: int, ids: Sequence[int], past: int) -> Logits:
        """Read tokens of a text behind `past` ones that were; the logits behind the last one."""

    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> Logits:
        """A token more for each text."""

    def move(self, source: int, target: int, length: int) -> None:
        """The text of one slot into another."""


class Generator:
    """All texts of one worker: those that wait, and those in the engine's slots, of which at most
    `most` are used (0: all).
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
        """Whether there is anything to do."""
        return bool(self._waiting or self._active or self._reading)

    def add(self, text: Text) -> None:
        """Let a text begin as soon as there is a slot."""
        self._waiting.append(text)

    def cancel(self, names: Set[Any]) -> None:
        """Let go of texts at once."""
        self._waiting = deque(text for text in self._waiting if text.name not in names)
        if self._reading is not None and self._reading.name in names:
            self._reading = None
        for slot in reversed(range(len(self._active))):
            if self._active[slot].name in names:
                self._leave(slot)

    def tick(self) -> Iterator[Piece]:
        """All texts that were read go on by a token, and the next one is read a part further."""
        if self._active:
            tokens = [text.tokens[-1] for text in self._active]
            lengths = [text.length for text in self._active]
            yield from self._told(
                range(len(self._active)), self._steps.step(tokens, lengths)
            )
        if self._reading is None and self._waiting and len(self._active) < self.slots:
            self._reading, self._read = self._waiting.popleft(), 0
        if self._reading is not None:
            yield from self._read_on(self._reading)

    def _read_on(self, text: Text) -> Iterator[Piece]:
        """Read a part of a prompt, in the slot behind those in use; at its end the text begins to
        grow.
        """
        part = text.prompt[self._read : self._read + CHUNK]
        logits = self._steps.prefill(len(self._active), part, self._read)
        self._read += len(part)
        if self._read == len(text.prompt):
            self._reading = None
            self._active.append(text)
            yield from self._told([len(self._active) - 1], logits[None])

    def _told(self, slots: Sequence[int], logits: Logits) -> Iterator[Piece]:
        found = [
            self._grown(self._active[slot], row)
            for slot, row in zip(slots, logits, strict=True)
        ]
        for slot, piece in zip(reversed(slots), reversed(found), strict=True):
            if piece.ended:
                self._leave(slot)
        yield from found

    def _grown(self, text: Text, logits: Logits) -> Piece:
        """A text with its next token."""
        before = (
            np.array([*text.prompt, *text.tokens])
            if text.how.repetition_penalty != 1
            else None
        )
        token = choose(logits, text.how, len(text.tokens), before)
        own, near = (
            logprobs(logits, token, text.how.logprobs)
            if text.how.logprobs >= 0
            else (None, [])
        )
        return grow(text, token, self._steps.places, own, near)

    def _leave(self, slot: int) -> None:
        """The last text takes the place of one that has gone."""
        last = len(self._active) - 1
        if slot != last:
            self._steps.move(last, slot, self._active[last].length)
            self._active[slot] = self._active[last]
        self._active.pop()
        if (
            self._reading is not None and self._read
        ):  # it stays in the slot behind those in use
            self._steps.move(last + 1, last, self._read)


def grow(
    text: Text,
    token: int,
    places: int,
    logprob: float | None = None,
    near: Sequence[tuple[int, float]] = (),
) -> Piece:
    """Add a token to a text of at most `places` tokens with its prompt: what a step has added.

    Characters that may yet become a stop sequence are held back. An engine that chooses tokens by
    itself makes its pieces with this.
    """
    place = len(text.text)
    text.tokens.append(token)
    ended = STOP if token in text.ends else ""
    if not ended:
        text.text += text.pieces(token)
    fresh, stopped = _fresh(text)
    ended = ended or (STOP if stopped else "")
    if not ended and (
        len(text.tokens) >= text.how.max_tokens or text.length + 1 >= places
    ):
        ended = LENGTH
    if ended and not stopped:
        fresh = text.text[text.told :]
    text.told += len(fresh)
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


def _fresh(text: Text) -> tuple[str, bool]:
    """Text that is safe to emit now (a tail that may become a stop sequence is held back), and
    whether a stop sequence was reached.
    """
    places = [
        place
        for stop in text.how.stop
        if (place := text.text.find(stop, max(0, text.told - len(stop)))) >= 0
    ]
    if places:
        return text.text[text.told : max(text.told, min(places))], True
    held = max((_overlap(text.text, stop) for stop in text.how.stop), default=0)
    return text.text[text.told : max(text.told, len(text.text) - held)], False


def _overlap(text: str, stop: str) -> int:
    """How much of the end of a text is the beginning of another."""
    return next(
        (
            size
            for size in range(min(len(text), len(stop) - 1), 0, -1)
            if text.endswith(stop[:size])
        ),
        0,
    )
