"""What the protocols that take texts and pictures share: the version asked for, inputs as JSON,
many at once.
"""

import asyncio
import binascii
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from modelmill.errors import InvalidInput, TooLarge
from modelmill.protocols.base import Request
from modelmill.serve.gateway import Gateway
from modelmill.types import QUESTION, SEED, TEXTS, KeyInfo, ServedVersion

BATCH = 128
"""Most inputs in one request."""
VECTORS = "feature-extraction"
"""The task whose models make vectors of texts."""

VERSION = b"x-modelmill-version"
A = {"image": "an image", "audio": "a recording", "tensor": "a tensor"}
"""Kinds of raw input that are files, as sentences have them."""


def named(kind: str) -> str:
    """A kind of input as sentences have it, also one that only a plug-in knows."""
    return A.get(kind, f"an input of the kind '{kind[:40]}'")


def pick(
    gateway: Gateway, caller: KeyInfo, request: Request, name: str
) -> ServedVersion:
    """The version that answers this prediction, which the header `X-Modelmill-Version` may pin;
    raises `NotFound`.
    """
    return gateway.pick(caller, name, request.header(VERSION) or None)


def renewed(
    gateway: Gateway, caller: KeyInfo, request: Request, route: ServedVersion
) -> ServedVersion:
    """The version that `pick` has found, as it is now; raises `NotFound`."""
    return gateway.renewed(caller, route, request.header(VERSION) or None)


def raw_of(value: Any, kind: str, place: str) -> bytes:
    """A text, a seed, or a picture as base64 (also as a data URL or `{"b64": ...}`), as the task
    takes it.

    `place` is what the message of `InvalidInput` calls it.
    """
    if kind == SEED and (value is None or type(value) is int):
        value = "" if value is None else str(value)
    if kind == QUESTION and isinstance(value, dict):
        return msgspec.json.encode(value)
    if isinstance(value, dict) and value.keys() == {"b64"} and kind not in TEXTS:
        value = value["b64"]
    if not isinstance(value, str):
        if kind == QUESTION:
            raise InvalidInput(
                f'{place} holds {{"question": ..., "context": ...}}, not {_kind_of(value)}'
            )
        what = {"text": "a text", SEED: "a seed (a whole number), or nothing"}.get(
            kind
        ) or f"{named(kind)} as base64"
        raise InvalidInput(f"{place} holds {what}, as a string, not {_kind_of(value)}")
    if kind in TEXTS:
        return value.encode("utf-8", "surrogatepass")
    try:
        return b64decode(
            value.partition(",")[2] if value.startswith("data:") else value,
            validate=True,
        )
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{place} is not valid base64 of {named(kind)}") from error


def _kind_of(value: Any) -> str:
    words = {
        dict: "an object",
        list: "a list",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    return words.get(type(value), "null")


def parameters_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The `parameters` of a request; raises `InvalidInput`."""
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInput(
            f"parameters is an object of names and values, not {_kind_of(parameters)}"
        )
    return parameters


def listed(given: Any) -> list[Any]:
    """OpenAI's inputs: a text, a list of texts, the token ids of a text, or a list of these."""
    return (
        given
        if isinstance(given, list) and not (given and type(given[0]) is int)
        else [given]
    )


def check_count(place: str, given: Sequence[Any], most: int = BATCH) -> None:
    """Raises `InvalidInput` for an empty list and for one that is too long."""
    if not 1 <= len(given) <= most:
        raise InvalidInput(
            f"{place} is a list of 1 to {most:,} entries, not {len(given):,}: send the rest "
            "separately"
        )


async def answers(
    gateway: Gateway,
    caller: KeyInfo,
    request: Request,
    route: ServedVersion,
    protocol: str,
    inputs: Sequence[bytes],
    parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]],
) -> list[bytes]:
    """The answer to each input as JSON, in their order; the gateway puts them into batches.

    `parameters` are those of all inputs, or of each. Raises what the first refused input was
    refused for, saying which one of several it is.
    """
    each = [parameters] * len(inputs) if isinstance(parameters, Mapping) else parameters

    async def one(data: bytes, own: Mapping[str, Any]) -> bytes:
        answer = await gateway.predict(
            caller,
            route,
            protocol,
            data=data,
            parameters=own,
            gone=request.gone,
            request_id=request.id,
            pinned=VERSION in request.headers,
        )
        return answer.data

    if len(inputs) == 1:
        return [await one(inputs[0], each[0])]
    size = sum(
        len(value) for own in each for value in own.values() if isinstance(value, str)
    )
    if size > gateway.limits.body_bytes:  # each input is sent with all parameters
        raise TooLarge(
            f"parameters for {len(inputs)} inputs come to {size:,} bytes: send fewer inputs with "
            "them"
        )
    # All are waited for: none goes on unseen when another one has failed.
    results = await asyncio.gather(*map(one, inputs, each), return_exceptions=True)
    for number, result in enumerate(results):
        if isinstance(result, InvalidInput):
            raise type(result)(f"input {number}: {result}") from result
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, bytes)]


def refuse_tensor_model(route: ServedVersion) -> None:
    """Raises `InvalidInput` for a model without a task, which takes tensors alone."""
    if route.kind == "tensor":
        raise InvalidInput(
            f"'{route.deployment}' takes tensors, not pictures or texts: POST them to "
            f"/v2/models/{route.deployment}/infer or /v1/models/{route.deployment}:predict"
        )
