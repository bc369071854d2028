"""Infer calls of v2 in JSON and binary: from bytes to `RawInput` and `RequestedOutput`, from
tensors to bytes.

The binary form is Triton's extension: the JSON first (its length in
`Inference-Header-Content-Length`), then the tensors in their order, little-endian. The usual
request, one decode with the element's type known, is the fast path; everything else (nested lists,
several datatypes, large lists, NaN) is decoded again more carefully.
"""

import binascii
import json
import math
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from types import GenericAlias
from typing import Any, Generic, NamedTuple, TypeVar, cast

import msgspec

from modelmill.errors import InvalidInput
from modelmill.protocols.base import decoded, mended
from modelmill.protocols.v2.tensors import (
    MAX_RANK,
    MemoryRange,
    RawInput,
    RequestedOutput,
    Signature,
    expect,
)
from modelmill.protocols.v2.values import SIZES, packed, unpacked
from modelmill.serve.tensors import pack_bytes
from modelmill.serve.wire import Tensor
from modelmill.tasks.kinds import input_kind
from modelmill.types import Json

T = TypeVar("T")

LARGE = 1 << 20
"""Bytes of a body, or of an answer's tensors, from which on it is handled outside the event
loop.
"""
CHUNK = 1 << 18
"""Bytes of a list that are decoded at once: between two, other threads run, and memory stays
bounded.
"""
VALUES = 1 << 15
"""Values of a list that are encoded at once."""
NUMBERLESS = 4 << 20
"""Bytes of JSON with NaN or Infinity, which only Python's own slower parser reads."""

ELEMENTS: dict[str, type] = {
    "BOOL": bool,
    "FP32": float,
    "FP64": float,
    "BYTES": str,
    **{
        f"{sign}INT{bits}": int
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    },
}
"""What the elements of a datatype are in JSON."""


class TensorParameters(msgspec.Struct, gc=False):
    """Where a tensor is, or shall go, other than in the JSON."""

    binary_data_size: int | None = None
    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None
    shared_memory_byte_size: int = -1
    shared_memory_offset: int = 0


class InferInput(msgspec.Struct, Generic[T], gc=False):
    """A tensor of the request."""

    name: str
    shape: list[int]
    datatype: str
    data: T = cast(Any, None)
    parameters: TensorParameters | None = None


class InferOutput(msgspec.Struct, gc=False):
    """A tensor that the response is to hold."""

    name: str
    parameters: TensorParameters | None = None


class InferRequest(msgspec.Struct, Generic[T], gc=False):
    """The JSON of an infer call."""

    inputs: list[InferInput[T]]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[InferOutput] | None = None

    @property
    def binary(self) -> bool:
        """Whether outputs are sent in binary unless they say otherwise."""
        return (
            self.parameters is not None
            and self.parameters.get("binary_data_output") is True
        )


class Loose(NamedTuple):
    """Values of a list that nothing has typed yet."""

    values: Any


_careful: msgspec.json.Decoder[InferRequest[Any]] = msgspec.json.Decoder(
    InferRequest[msgspec.Raw]
)
_decoders: dict[frozenset[str], msgspec.json.Decoder[InferRequest[Any]]] = {}


def _decoder(own: Signature) -> msgspec.json.Decoder[InferRequest[Any]]:
    """The decoder that knows what the elements are, when all inputs have the same."""
    elements = {ELEMENTS.get(datatype) for datatype in own.datatypes}
    element = elements.pop() if len(elements) == 1 else None
    decoder = _careful
    if element is not None:
        decoder = msgspec.json.Decoder(InferRequest[list[element]])  # type: ignore[valid-type]
    return _decoders.setdefault(own.datatypes, decoder)


def head_size(body: bytes, header: bytes | None) -> int:
    """The length of the JSON at the head of a body; raises `InvalidInput` for one that can't be."""
    if header is None:
        return len(body)
    size = int(header) if header.isdigit() and len(header) < 19 else -1
    if not 0 <= size <= len(body):
        raise _wrong_length(header, len(body))
    return size


def _wrong_length(header: bytes, size: int) -> InvalidInput:
    text = header[:20].decode("latin-1")
    return InvalidInput(
        f"Inference-Header-Content-Length is {text!r}, but the body has {size} bytes"
    )


def decode(body: bytes, size: int, own: Signature) -> InferRequest[Any]:
    """The JSON of a body, without fields that are unknown. Raises `InvalidInput`."""
    head = body if size == len(body) else memoryview(body)[:size]
    decoder = _decoders.get(own.datatypes) or _decoder(own)
    if size <= LARGE:
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return decoder.decode(head)
    return _decode_carefully(head, len(body) > size)


def _decode_carefully(
    head: bytes | memoryview, is_split: bool
) -> InferRequest[Any]:
    """Lists of any nesting and datatype; says what is wrong."""
    try:
        return decoded(_careful.decode, head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not isinstance(error, msgspec.ValidationError) and _is_numberless(
            head
        ):
            return _decode_loosely(mended(bytes(head)))
        hint = (
            ""
            if is_split
            else "; tensors after the JSON need the header Inference-Header-Content-Length"
        )
        raise InvalidInput(
            f"the request is not valid: {error}{hint}"
        ) from error
    except RecursionError as error:
        raise InvalidInput("the JSON is nested too deeply") from error


def _is_numberless(head: bytes | memoryview) -> bool:
    whole = bytes(head)
    return b"NaN" in whole or b"Infinity" in whole


def _decode_loosely(head: bytes) -> InferRequest[Any]:
    """JSON with bare NaN or Infinity, which msgspec (rightly) refuses."""
    if len(head) > NUMBERLESS:
        raise InvalidInput(
            f"JSON with NaN or Infinity has at most {NUMBERLESS:,} bytes; send binary tensors "
            "instead"
        )
    try:
        document = json.loads(head, parse_float=_finite)
        # Refuses lone surrogates and numbers that nothing can take
        msgspec.json.encode(document)
        message = msgspec.convert(document, InferRequest[Any])
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the request is not valid: {error}") from error
    _mark_loose(message)
    return message


def _mark_loose(message: InferRequest[Any]) -> None:
    """Say of values that nothing has typed them."""
    for entry in message.inputs:
        if entry.data is not None:
            entry.data = Loose(entry.data)


def _finite(text: str) -> float:
    """A number that is written with digits; Python would take 1e999 for Infinity."""
    if math.isinf(number := float(text)):
        raise ValueError(f"the number {text[:20]} is out of range")
    return number


# ---- tensors of a request

ReadMemory = Callable[[MemoryRange], bytes]


def raw_inputs(
    message: InferRequest[Any],
    body: bytes,
    size: int,
    own: Signature,
    read: ReadMemory,
) -> list[RawInput]:
    """Every tensor of a request: from the JSON, from what follows it, or by `read` from shared
    memory.

    Raises `InvalidInput` for a tensor that is not whole, and for bytes that belong to none.
    """
    inputs = []
    at = size
    end = len(body)
    for entry in message.inputs:
        where = entry.parameters
        if where is None or (
            where.binary_data_size is None
            and where.shared_memory_region is None
        ):
            inputs.append(
                RawInput(
                    entry.name,
                    entry.datatype,
                    entry.shape,
                    _from_json(entry, own),
                )
            )
            continue
        if entry.data is not None or None not in (
            where.binary_data_size,
            where.shared_memory_region,
        ):
            raise _brought_twice(entry)
        if (length := where.binary_data_size) is None:
            data = read(memory_of(where))
        else:
            if not 0 <= length <= end - at:
                raise _too_long(entry, length)
            data = body[at : at + length]
            at += length
        inputs.append(RawInput(entry.name, entry.datatype, entry.shape, data))
    if at != end:
        raise InvalidInput(f"{end - at} bytes follow the last tensor")
    return inputs


def _brought_twice(entry: InferInput[Any]) -> InvalidInput:
    return InvalidInput(
        f"input '{entry.name:.80}' brings its data twice: in JSON, in binary or in shared "
        "memory"
    )


def _too_long(entry: InferInput[Any], length: int) -> InvalidInput:
    return InvalidInput(
        f"input '{entry.name:.80}': binary_data_size {length!r:.30} exceeds the body"
    )


def memory_of(where: TensorParameters) -> MemoryRange:
    """The stretch of shared memory that parameters name."""
    return MemoryRange(
        where.shared_memory_region or "",
        where.shared_memory_byte_size,
        where.shared_memory_offset,
    )


def _from_json(entry: InferInput[Any], own: Signature) -> bytes:
    """A list of values, flat or nested, as a tensor's data; raises `InvalidInput`."""
    count = expect(own, entry.name, entry.datatype, entry.shape)
    element = ELEMENTS.get(entry.datatype)
    if element is None or entry.data is None:
        raise _no_values(entry)
    if (
        type(entry.data) is msgspec.Raw
        and len(entry.data) > CHUNK
        and element is not str
    ):
        data, actual = _in_chunks(entry, bytes(entry.data), element)
    else:
        values = (
            entry.data
            if type(entry.data) is list
            else _carefully(entry, element)
        )
        data, actual = _packed(entry, values, own), len(values)
    if actual != count:
        raise InvalidInput(
            f"input '{entry.name}': the shape {entry.shape} has {count} values, given {actual}"
        )
    return data


def _no_values(entry: InferInput[Any]) -> InvalidInput:
    """The error of an input that JSON can't bring, or does not."""
    if entry.datatype not in ELEMENTS:
        return InvalidInput(
            f"input '{entry.name}': {entry.datatype} has no form in JSON; send it as binary data"
        )
    return InvalidInput(
        f"input '{entry.name}' brings no data: neither data nor binary_data_size"
    )


def _packed(entry: InferInput[Any], values: list[Any], own: Signature) -> bytes:
    if (
        entry.datatype != "BYTES"
        or entry.name not in own.raw
        or input_kind(entry.name).is_text
    ):
        return packed(entry.name, entry.datatype, values)
    try:
        return pack_bytes([b64decode(value, validate=True) for value in values])
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(
            f"input '{entry.name}': in JSON it is a file as base64"
        ) from error


def _carefully(entry: InferInput[Any], element: type) -> list[Any]:
    """Values of a list that may be nested, in row-major order."""
    try:
        return _flat_values(entry.data, element)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise _not_values(entry, error) from error


def _flat_values(data: Loose | msgspec.Raw, element: type) -> list[Any]:
    """Raises what msgspec raises, and `ValueError` for uneven or deep nesting."""
    wanted = GenericAlias(list, (element,))
    if isinstance(data, Loose):
        return list(msgspec.convert(_flat(data.values), wanted))
    if element is str:
        return msgspec.convert(_flat(msgspec.json.decode(data)), list[str])
    return list(msgspec.json.decode(_unnested(bytes(data)), type=wanted))


def _not_values(entry: InferInput[Any], error: Exception) -> InvalidInput:
    return InvalidInput(
        f"input '{entry.name}': data is not a list of values of {entry.datatype}: {error}"
    )


def _flat(values: Any) -> Any:
    """Nested lists as entry."""
    for _ in range(MAX_RANK):
        if not isinstance(values, list) or not any(
            isinstance(value, list) for value in values
        ):
            return values
        if not all(isinstance(value, list) for value in values):
            raise ValueError("it is nested unevenly")
        values = list(chain.from_iterable(values))
    raise ValueError(f"it is nested more than {MAX_RANK} deep")


def _unnested(raw: bytes) -> bytes:
    """The JSON of a list of lists as that of one list; its brackets are known to match."""
    if raw[:1] != b"[":
        raise ValueError("it is no list")
    if raw.find(b"[", 1) < 0:
        return raw
    if b'"' in raw or b"{" in raw:
        raise ValueError("it holds texts or objects")
    flat = raw.translate(None, b"[]")
    lead = raw[: len(raw) - len(raw.lstrip(b"[ \t\r\n"))]
    if lead.count(b"[") > MAX_RANK:
        raise ValueError(f"it is nested more than {MAX_RANK} deep")
    return b"[%b]" % (flat if flat.strip(b", \t\r\n") else b"")


def _in_chunks(
    entry: InferInput[Any], raw: bytes, element: type
) -> tuple[bytes, int]:
    """A long list of numbers, part by part: the data and how many there were."""
    decoder = msgspec.json.Decoder(list[element])  # type: ignore[valid-type]
    parts = []
    found = 0
    try:
        for chunk in _chunks(_unnested(raw)):
            values = decoder.decode(chunk)
            if not values and found:
                raise ValueError("a value is missing")
            parts.append(packed(entry.name, entry.datatype, values))
            found += len(values)
    except ValueError as error:  # also what msgspec raises
        raise _not_values(entry, error) from error
    return b"".join(parts), found


def _chunks(flat: bytes) -> Iterator[bytes]:
    """The JSON of a flat list as that of shorter lists."""
    at = 1
    while at:
        cut = flat.find(b",", at + CHUNK)
        part = flat[at : cut if cut > 0 else -1]
        yield b"[" + part + b"]"
        at = cut + 1


# ---- outputs of a request


def requested_outputs(message: InferRequest[Any]) -> list[RequestedOutput]:
    """The outputs that a request names; raises `InvalidInput`."""
    default = message.binary
    return [
        RequestedOutput(output.name, default)
        if output.parameters is None
        else _requested(output.name, output.parameters, default)
        for output in message.outputs or ()
    ]


def _requested(
    name: str, parameters: TensorParameters, default: bool
) -> RequestedOutput:
    """One output; raises `InvalidInput`."""
    if not 0 <= parameters.classification < 1 << 31:
        raise InvalidInput(
            f"output '{name:.80}': classification is how many classes to name, from 1"
        )
    binary = (
        default if parameters.binary_data is None else parameters.binary_data
    )
    memory = (
        memory_of(parameters)
        if parameters.shared_memory_region is not None
        else None
    )
    return RequestedOutput(name, binary, parameters.classification, memory)


def answer_json(
    own: Signature,
    id: str,
    tensors: Sequence[Tensor],
    wanted: Sequence[RequestedOutput],
) -> tuple[bytes, list[bytes]]:
    """The JSON of an answer and what follows it; raises `InvalidInput` for what JSON can't say."""
    entries, blobs = [], []
    for tensor, want in zip(tensors, wanted, strict=True):
        head = b'{"name":%b,"datatype":"%b","shape":%b' % (
            encode(tensor.name),
            tensor.datatype.encode(),
            encode(tensor.shape),
        )
        if want.memory is not None:
            memory = _left_in(want.memory, tensor)
            entries.append(b'%b,"parameters":%b}' % (head, encode(memory)))
        elif want.binary:
            entries.append(
                b'%b,"parameters":{"binary_data_size":%d}}'
                % (head, len(tensor.data))
            )
            blobs.append(tensor.data)
        else:
            entries.append(b'%b,"data":%b}' % (head, values_json(tensor)))
    named = b',"id":%b' % encode(id) if id else b""
    return b'%b%b,"outputs":[%b]}' % (
        own.head,
        named,
        b",".join(entries),
    ), blobs


encode = msgspec.json.Encoder().encode


def _left_in(memory: MemoryRange, tensor: Tensor) -> Json:
    """Where an output was left, in the response."""
    return {
        "shared_memory_region": memory.region,
        "shared_memory_offset": memory.offset,
        "shared_memory_byte_size": len(tensor.data),
    }


def values_json(tensor: Tensor) -> bytes:
    """The values of an output as a flat JSON list; NaN and Infinity as Python and Triton write
    them.
    """
    step = VALUES * SIZES.get(tensor.datatype, 0)
    if 0 < step < len(tensor.data):
        return _values_in_steps(tensor, step)
    values = unpacked(tensor)
    if tensor.datatype == "BYTES":
        return _texts_json(tensor.name, values)
    return _numbers_json(values)


def _values_in_steps(tensor: Tensor, step: int) -> bytes:
    """Many values, so many bytes of them at a time."""
    slices = (
        tensor.data[at : at + step] for at in range(0, len(tensor.data), step)
    )
    parts = [
        values_json(Tensor(tensor.name, tensor.datatype, [], data))[1:-1]
        for data in slices
    ]
    return b"[" + b",".join(parts) + b"]"


def _texts_json(name: str, values: list[bytes]) -> bytes:
    try:
        return encode([str(value, "utf-8") for value in values])
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"output '{name}' holds bytes that are not text: ask for binary data"
        ) from error


def _numbers_json(values: list[Any]) -> bytes:
    text = encode(values)
    return (
        json.dumps(values, separators=(",", ":")).encode()
        if b"null" in text
        else text
    )
