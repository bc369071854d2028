"""Open Inference Protocol v2 over HTTP: health, metadata, infer with JSON and binary tensors.

The binary form is Triton's extension: the JSON first (its length in `Inference-Header-Content-Length`), then the
tensors in their order, little-endian.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

from modelmill import __version__
from modelmill.engines.base import NUMPY
from modelmill.errors import InvalidInput, NotFound, Unavailable
from modelmill.protocols.base import Request, Response, Route, is_number, simple_error
from modelmill.serve.gateway import Gateway
from modelmill.serve.wire import Tensor
from modelmill.types import KeyInfo, TensorSpec
from modelmill.types import Route as Deployment

error = simple_error

HEADER = b"inference-header-content-length"
MAX_ELEMENTS = 1 << 28

Side = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class InferInput(msgspec.Struct):
    """A tensor of the request: `data` in JSON, or `binary_data_size` bytes behind it."""

    name: str
    shape: Annotated[list[Side], msgspec.Meta(max_length=16)]
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: dict[str, Any] = {}


class InferOutput(msgspec.Struct):
    """A tensor that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The JSON of an infer call."""

    inputs: list[InferInput]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[InferOutput] | None = None


_decoder = msgspec.json.Decoder(InferRequest)


async def live(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """The server answers."""
    return Response(b'{"live":true}')


async def ready(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """The server can take inference calls."""
    return Response(msgspec.json.encode({"ready": gateway.ready}), 200 if gateway.ready else 503)


async def server(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """Server metadata."""
    return Response(
        msgspec.json.encode({"name": "modelmill", "version": __version__, "extensions": ["binary_tensor_data"]})
    )


async def model_ready(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """200 when the model answers, 400 when not, as Triton's clients expect."""
    try:
        route = gateway.route(caller, names["model"], names.get("version"))
    except NotFound as missing:
        return Response(simple_error(missing), 400)
    is_ready = route.ready and gateway.connected(route)
    return Response(msgspec.json.encode({"name": route.deployment, "ready": is_ready}), 200 if is_ready else 400)


async def metadata(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """The model's signature."""
    route = gateway.route(caller, names["model"], names.get("version"))
    if not route.inputs:
        raise Unavailable(f"'{route.deployment}' is loading", retry_after=1)
    document = {
        "name": route.deployment,
        "versions": [str(route.version)],
        "platform": "onnxruntime_onnx",
        "inputs": [msgspec.to_builtins(spec) for spec in route.inputs],
        "outputs": [msgspec.to_builtins(spec) for spec in route.outputs],
    }
    return Response(msgspec.json.encode(document))


async def infer(gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]) -> Response:
    """Tensors in, tensors out."""
    route = gateway.route(caller, names["model"], names.get("version"))
    gateway.refuse_unservable(route)
    body = await request.body()
    route = gateway.route(caller, names["model"], names.get("version"))  # it may have been rolled meanwhile
    asked, binary = _split(body, request.header(HEADER))
    tensors = _tensors(asked, binary, route)
    wanted = _wanted(asked, route)
    answer = await gateway.predict(caller, route, "v2_http", tensors=tensors)
    by_name = {tensor.name: tensor for tensor in answer.tensors}
    return _respond(asked, route, [(by_name[name], raw) for name, raw in wanted])


def _split(body: bytes, header: str) -> tuple[InferRequest, memoryview]:
    """The JSON and the binary part; raises `InvalidInput`."""
    size = len(body)
    if header:
        if not is_number(header) or int(header) > size:
            raise InvalidInput(f"Inference-Header-Content-Length is {header[:20]!r}, but the body has {size} bytes")
        size = int(header)
    try:
        return _decoder.decode(memoryview(body)[:size]), memoryview(body)[size:]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "" if header else "; tensors behind the JSON need the header Inference-Header-Content-Length"
        raise InvalidInput(f"the request is not valid: {error}{hint}") from error
    except RecursionError as error:
        raise InvalidInput("the JSON is nested too deeply") from error


def _tensors(asked: InferRequest, binary: memoryview, route: Deployment) -> list[Tensor]:
    """Every input of the model, checked against its signature; raises `InvalidInput`."""
    specs = {spec.name: spec for spec in route.inputs}
    given = [one.name for one in asked.inputs]
    if sorted(given) != sorted(specs):
        raise InvalidInput(f"the model takes the inputs {', '.join(specs)}; given: {', '.join(given)[:200]}")
    tensors, at = [], 0
    for one in asked.inputs:
        spec = specs[one.name]
        _check_shape(one, spec)
        size = one.parameters.get("binary_data_size")
        if size is None:
            data = _from_json(one)
        else:
            if type(size) is not int or not 0 <= size <= len(binary) - at:
                raise InvalidInput(f"input '{one.name}': binary_data_size {size!r:.30} exceeds the body")
            data = bytes(binary[at : at + size])
            at += size
        wanted = _bytes_of(one)
        if len(data) != wanted:
            raise InvalidInput(
                f"input '{one.name}': shape {one.shape} of {one.datatype} is {wanted} bytes, given {len(data)}"
            )
        tensors.append(Tensor(one.name, one.datatype, one.shape, data))
    if at != len(binary):
        raise InvalidInput(f"{len(binary) - at} bytes follow the last tensor")
    batches = {tensor.shape[0] for tensor in tensors}
    if len(batches) > 1:
        raise InvalidInput(f"the inputs disagree on the batch size: {sorted(batches)}")
    return tensors


def _check_shape(one: InferInput, spec: TensorSpec) -> None:
    if one.datatype != spec.datatype:
        raise InvalidInput(f"input '{one.name}' wants the datatype {spec.datatype}, given: {one.datatype[:20]!r}")
    fits = len(one.shape) == len(spec.shape) and all(
        wanted in (-1, side) for side, wanted in zip(one.shape, spec.shape, strict=True)
    )
    if not fits or 0 in one.shape:
        raise InvalidInput(f"input '{one.name}' wants the shape {spec.shape}, given: {one.shape}")


def _bytes_of(one: InferInput) -> int:
    count = 1
    for side in one.shape:
        count *= side  # whole numbers of any size: nothing overflows
    if count > MAX_ELEMENTS:
        raise InvalidInput(f"input '{one.name}' has {count} elements; at most {MAX_ELEMENTS} are taken")
    return count * int(np.dtype(NUMPY[one.datatype]).itemsize)


def _from_json(one: InferInput) -> bytes:
    """Flat or nested numbers as raw bytes."""
    _bytes_of(one)  # the size is judged before anything of that size is made
    if b'"' in (raw := bytes(one.data)) or b"{" in raw:  # numpy would make huge arrays of texts
        raise InvalidInput(f"input '{one.name}': data holds texts or objects, not values of {one.datatype}")
    try:
        values = msgspec.json.decode(raw)
        # Left to itself numpy makes floats of whole numbers beyond 2^63.
        array = np.asarray(values, np.uint64) if one.datatype == "UINT64" and _whole(values) else np.asarray(values)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"input '{one.name}': data is not a list of numbers: {error}") from error
    kind = np.dtype(NUMPY[one.datatype])
    if array.dtype.kind not in {"b": "b", "f": "biuf"}.get(kind.kind, "biu"):
        raise InvalidInput(f"input '{one.name}': data does not hold values of {one.datatype}")
    if kind.kind in "iu" and array.size:
        info = np.iinfo(kind)
        if int(array.min()) < info.min or int(array.max()) > info.max:
            raise InvalidInput(f"input '{one.name}': {one.datatype} holds {info.min} to {info.max}")
    with np.errstate(over="ignore"):
        cast = array.astype(kind)
    if kind.kind == "f" and (np.isinf(cast) & ~np.isinf(array)).any():
        raise InvalidInput(f"input '{one.name}': a number is too large for {one.datatype}")
    return cast.tobytes()


def _whole(values: Any) -> bool:
    """Whether a nested list holds whole numbers only."""
    return all(map(_whole, values)) if isinstance(values, list) else type(values) is int


def _wanted(asked: InferRequest, route: Deployment) -> list[tuple[str, bool]]:
    """Names of the outputs to send and whether in binary; raises `InvalidInput`."""
    default = bool(asked.parameters.get("binary_data_output", False))
    if not asked.outputs:
        return [(spec.name, default) for spec in route.outputs]
    known = [spec.name for spec in route.outputs]
    for output in asked.outputs:
        if output.name not in known:
            raise InvalidInput(f"the model has the outputs {', '.join(known)}; asked: '{output.name[:80]}'")
    return [(out.name, bool(out.parameters.get("binary_data", default))) for out in asked.outputs]


def _respond(asked: InferRequest, route: Deployment, outputs: list[tuple[Tensor, bool]]) -> Response:
    described, blobs = [], []
    for tensor, raw in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if raw:
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            blobs.append(tensor.data)
        else:
            entry["data"] = np.frombuffer(tensor.data, NUMPY[tensor.datatype]).tolist()
        described.append(entry)
    document: dict[str, Any] = {"model_name": route.deployment, "model_version": str(route.version)}
    if asked.id:
        document["id"] = asked.id
    head = msgspec.json.encode({**document, "outputs": described})
    if not blobs:
        return Response(head)
    headers = ((HEADER, str(len(head)).encode()),)
    return Response(b"".join([head, *blobs]), 200, "application/octet-stream", headers)


_MODEL = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")

ROUTES = [
    Route("GET", "/v2/health/live", live, public=True),
    Route("GET", "/v2/health/ready", ready, public=True),
    Route("GET", "/v2", server),
    *(Route("POST", f"{path}/infer", infer) for path in _MODEL),
    *(Route("GET", f"{path}/ready", model_ready) for path in _MODEL),
    *(Route("GET", path, metadata) for path in _MODEL),
]
