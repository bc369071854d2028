"""The worker of a model that writes texts: one thread runs a step for all calls together."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from modelmill.errors import (
    Cancelled,
    InvalidInput,
    MillError,
    ModelFailed,
    reraise_exit,
)
from modelmill.predictor import Predictor
from modelmill.serve.tensors import elements_of, texts_of
from modelmill.serve.wire import (
    ANSWER,
    CANCEL,
    STREAM,
    Answer,
    Batch,
    Call,
    Part,
    Tensor,
)
from modelmill.streams import Piece, Text
from modelmill.tasks.base import Raw
from modelmill.types import Struct, Usage

log = logging.getLogger("modelmill.worker")

ALIVE_SECONDS = 1.0
"""After so long without a token the gateway is sent an empty batch: the worker is alive."""
MOST_ROWS = 256
"""Texts of one call: all others queue after them."""
Send = Callable[[Batch], None]


@dataclass
class Row:
    """One text of a call, and its tokens so far."""

    text: Text
    pieces: list[Piece] = field(default_factory=list)
    sent: int = 0
    """Characters of the answer that were sent."""


@dataclass
class Caller:
    """A call that is being answered, and where its answer goes."""

    call: Call
    parameters: Struct
    send: Send
    rows: list[Row]
    left: int
    seconds: float = 0.0
    """Of the steps that its texts took part in, its share."""


class StreamWorker:
    """Takes calls from all links, and lets their answers grow beside one another, at most `most`
    at a time (0: as many as the engine has slots for).
    """

    def __init__(self, model: Predictor, most: int = 0) -> None:
        assert model.writer is not None
        self.model, self.task = model, model.streaming
        self._writer = model.writer
        if most:
            self._writer.slots = min(most, self._writer.slots)
        self._callers: dict[tuple[int, int], Caller] = {}
        self._changed = threading.Condition()
        self._arrived: list[tuple[Send, Call]] = []
        self._gone: list[Send] = []
        self._sent_at = 0.0
        self._seconds = 0.0
        self._thread = threading.Thread(
            target=self._run, name="steps", daemon=True
        )
        self._thread.start()

    @staticmethod
    def takes(call: Call) -> bool:
        """Whether a call wants texts to grow; others want what the model thinks of theirs."""
        return call.data is not None or call.outputs in ([ANSWER], [CANCEL])

    def take(self, calls: Sequence[Call], send: Send) -> None:
        """Let calls begin, or take them back; never waits for the engine."""
        with self._changed:
            self._arrived += [(send, call) for call in calls]
            self._changed.notify()

    def leave(self, send: Send) -> None:
        """A link has ended: nothing is sent to it any more."""
        with self._changed:
            self._gone.append(send)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            arrived, gone = self._changes()
            for send, call in arrived:
                self._begin(call, send)
            self._forget_callers(gone)
            try:
                self._send_pieces(self._step())
            except BaseException as error:
                reraise_exit(error)
                self._fail(error)

    def _changes(self) -> tuple[list[tuple[Send, Call]], list[Send]]:
        """The calls that came and the links that went; waits for some while no text grows."""
        with self._changed:
            while not (self._arrived or self._gone or self._writer.busy):
                self._changed.wait()
            arrived, self._arrived = self._arrived, []
            gone, self._gone = self._gone, []
        return arrived, gone

    def _step(self) -> list[Piece]:
        """One step of all texts, whose time is shared by those that it gave a token."""
        started = time.perf_counter()
        pieces = list(self._writer.tick())
        self._seconds += time.perf_counter() - started
        if pieces:
            for piece in pieces:
                self._callers[piece.name[:2]].seconds += self._seconds / len(
                    pieces
                )
            self._seconds = 0.0
        return pieces

    def _begin(self, call: Call, send: Send) -> None:
        name = (id(send), call.id)
        if call.outputs == [CANCEL]:
            if name in self._callers:
                self._forget(name)
                _refuse(call, send, Cancelled("the client has gone"))
            return
        try:
            caller = self._caller(call, send)
        except MillError as error:
            _refuse(call, send, error)
        except BaseException as error:
            reraise_exit(error)
            log.exception("a prompt could not be read")
            _refuse(call, send, ModelFailed("the prompt could not be read"))
        else:
            self._callers[name] = caller
            for row in caller.rows:
                self._writer.add(row.text)

    def _caller(self, call: Call, send: Send) -> Caller:
        """A call with its texts, which have not begun to grow; raises `InvalidInput`."""
        how = self.model.parameters(call.parameters)
        rows = [
            Row(self.model.begin((id(send), call.id, number), raw, how))
            for number, raw in enumerate(self._inputs(call))
        ]
        return Caller(call, how, send, rows, len(rows))

    def _inputs(self, call: Call) -> list[Raw]:
        """The inputs of a call, read; raises `InvalidInput`."""
        if call.data is not None:
            return [self.task.read(call.data, call.kind)]
        tensor = self._raw_tensor(call)
        if not (inputs := elements_of(tensor)):
            raise InvalidInput("the batch is empty")
        if len(inputs) > MOST_ROWS:
            raise InvalidInput(
                f"the batch has {len(inputs):,} texts; at most {MOST_ROWS} are taken at a time"
            )
        return [self.task.read(data, tensor.name) for data in inputs]

    def _raw_tensor(self, call: Call) -> Tensor:
        """The only tensor of a call, which holds raw inputs; raises `InvalidInput`."""
        kinds = self.task.kinds
        tensor = call.tensors[0] if len(call.tensors) == 1 else None
        if (
            tensor is None
            or tensor.datatype != "BYTES"
            or tensor.name not in kinds
        ):
            raise InvalidInput(
                f"the output '{ANSWER}' needs raw input: send '{kinds[0]}' as BYTES"
            )
        return tensor

    def _forget_callers(self, gone: Sequence[Send]) -> None:
        """Those of links that have ended."""
        names = [
            name for name, one in self._callers.items() if one.send in gone
        ]
        for name in names:
            self._forget(name)

    def _forget(self, name: tuple[int, int]) -> None:
        self._writer.cancel(
            {row.text.name for row in self._callers.pop(name).rows}
        )

    def _send_pieces(self, pieces: Sequence[Piece]) -> None:
        """Parts of what is streamed go together to each link; whole answers one by one."""
        parts: dict[int, tuple[Send, list[Part]]] = {}
        for piece in pieces:
            caller = self._callers[piece.name[:2]]
            part = self._grown(caller, piece)
            if part is not None:
                parts.setdefault(id(caller.send), (caller.send, []))[1].append(
                    part
                )
        for send, some in parts.values():
            send(Batch([], parts=some))
        for piece in pieces:
            if piece.ended:
                self._end(piece.name[:2])
        self._send_alive()

    def _grown(self, caller: Caller, piece: Piece) -> Part | None:
        """Add a piece to its text; returns what is sent of it where the answer is streamed."""
        row = caller.rows[piece.name[2]]
        row.pieces.append(piece)
        sent = row.sent
        row.sent += len(piece.text)
        if caller.call.outputs != [STREAM]:
            return None
        part = self.task.stream_part(piece, sent, self.model.context)
        return Part(caller.call.id, part)

    def _end(self, name: tuple[int, int]) -> None:
        """One of a caller's texts is whole; the last one makes the answer."""
        caller = self._callers[name]
        caller.left -= 1
        if caller.left:
            return
        del self._callers[name]
        found = [self._answer(caller, row) for row in caller.rows]
        caller.send(Batch([_whole(caller, found)], rows=len(found)))

    def _answer(self, caller: Caller, row: Row) -> bytes:
        parameters = caller.parameters
        return msgspec.json.encode(
            self.task.stream_answer(
                row.text, row.pieces, parameters, self.model.context
            )
        )

    def _send_alive(self) -> None:
        now = time.monotonic()
        if now - self._sent_at > ALIVE_SECONDS:
            self._sent_at = now
            links = {id(one.send): one.send for one in self._callers.values()}
            for send in links.values():
                send(Batch([]))

    def _fail(self, error: BaseException) -> None:
        """A step that fails fails all that took part: nobody can say whose fault it was."""
        log.exception("a step failed")
        why = "the model could not be run"
        if isinstance(error, MillError):
            why = error.message
        for name, caller in list(self._callers.items()):
            self._forget(name)
            _refuse(caller.call, caller.send, ModelFailed(why))


def _refuse(call: Call, send: Send, error: MillError) -> None:
    """Answer a call with an error."""
    send(Batch([Answer(call.id, code=error.code, message=error.message)]))


def _whole(caller: Caller, found: Sequence[bytes]) -> Answer:
    """The answer to a call whose texts are whole, each as JSON."""
    call, usage = caller.call, _usage(caller)
    if call.data is not None:
        return Answer(call.id, found[0], usage=usage)
    return Answer(call.id, tensors=[texts_of(ANSWER, found)], usage=usage)


def _usage(caller: Caller) -> Usage:
    """What a call has used whose texts are whole."""
    last = [row.pieces[-1] for row in caller.rows]
    return {
        "prompt_tokens": sum(piece.prompt_tokens for piece in last),
        "completion_tokens": sum(piece.tokens for piece in last),
        "compute_seconds": caller.seconds,
    }
