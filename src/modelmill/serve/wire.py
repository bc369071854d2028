"""Gateway <-> worker: frames of MessagePack over a Unix socket, each after its length (4 bytes,
little-endian).

A request frame is a list of calls, a reply frame is their batch: the answers and what they cost.
"""

from typing import Any

import msgspec

from modelmill.types import StreamPart, Usage

HEAD = 4
ANSWER = "answer"
"""The output that is the task's answer as JSON."""
CANCEL = "cancel"
"""The only output of a call that takes another one back: that of its `id`."""
STREAM = "stream"
"""The only output of a call whose answer is streamed token by token."""


class Tensor(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A named array as raw little-endian bytes; `datatype` in Open Inference Protocol names.

    Elements of BYTES are each after its length (4 bytes, little-endian).
    """

    name: str
    datatype: str
    shape: list[int]
    data: bytes


class Call(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One prediction: raw task input in `data`, or `tensors`; the other is empty.

    `kind` is that of `data`; empty it is the one that the task takes first. `outputs` names the
    tensors that are wanted (empty: all). A tensor of the datatype BYTES under the name of a kind
    that the task takes (`image`, `text`) holds raw task inputs, one a row; then the output `answer`
    may be asked for: BYTES, one JSON document of the task's answer a row.
    """

    id: int
    data: bytes | None
    tensors: list[Tensor]
    parameters: dict[str, Any]
    outputs: list[str] = []
    kind: str = ""


class Answer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One answer: JSON of the task's output, or tensors, or an error's code and message. `usage` is
    what the call has used, by unit; empty where it failed.

    The gateway fills in `version` (`model:number`) when another version answered than the one that
    was picked: one that took its place while the call waited.
    """

    id: int
    data: bytes = b""
    tensors: list[Tensor] = []
    code: str = ""
    message: str = ""
    version: str = ""
    usage: Usage = {}


class Part(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A token of a call whose answer is streamed."""

    id: int
    part: StreamPart


class Batch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The answers of one frame, how many rows they had, and seconds spent on decoding, running and
    encoding.

    A worker that writes texts sends `parts` of those that are streamed, or nothing at all, which
    says that it is alive.
    """

    answers: list[Answer]
    rows: int = 0
    decode_seconds: float = 0.0
    run_seconds: float = 0.0
    encode_seconds: float = 0.0
    parts: list[Part] = []


_encoder = msgspec.msgpack.Encoder()
_calls = msgspec.msgpack.Decoder(list[Call])
_batch = msgspec.msgpack.Decoder(Batch)


def frame(items: list[Call] | Batch) -> bytearray:
    """Calls, or their answers, as one frame."""
    buffer = bytearray(HEAD)
    _encoder.encode_into(items, buffer, HEAD)
    buffer[:HEAD] = (len(buffer) - HEAD).to_bytes(HEAD, "little")
    return buffer


def read_calls(body: bytes | bytearray | memoryview) -> list[Call]:
    """The calls of a frame's body."""
    return _calls.decode(body)


def read_batch(body: bytes | bytearray | memoryview) -> Batch:
    """The answers of a frame's body."""
    return _batch.decode(body)
