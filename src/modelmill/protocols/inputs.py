"""Inputs of the protocols that take texts, pictures and sound: raw values in JSON, parameters, and
answers to many at once.
"""

import asyncio
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from modelmill.errors import InvalidInput, TooLarge
from modelmill.protocols.base import Request
from modelmill.tasks.kinds import TENSOR, InputKind, input_kind
from modelmill.types import ServedVersion

BATCH = 128
"""Most inputs in one request."""
VECTORS = "feature-extraction"
"""The task whose models make vectors of texts."""


def raw_of(value: Any, kind: str, field: str) -> bytes:
    """A text, a seed, or a picture as base64 (also as a data URL or `{"b64": ...}`), as the task
    takes it.

    `field` names it in the message of `InvalidInput`.
    """
    taken = input_kind(kind)
    if taken.sent_as == "json" and isinstance(value, dict):
        return msgspec.json.encode(value)
    if not taken.is_text and isinstance(value, dict) and value.keys() == {"b64"}:
        value = value["b64"]
    text = _text_of(value, taken)
    if text is None:
        raise InvalidInput(f"{field} holds {taken.in_json}, not {_kind_of(value)}")
    if taken.is_text:
        return text.encode("utf-8", "surrogatepass")
    try:
        return _from_base64(text)
    except ValueError as error:  # also what base64 raises
        raise InvalidInput(f"{field} is not valid base64 of {taken.article}") from error


def _text_of(value: Any, taken: InputKind) -> str | None:
    """The text that a value is, or stands for; None where it is none."""
    if isinstance(value, str):
        return value
    if taken.optional and value is None:
        return ""
    if taken.sent_as == "number" and type(value) is int:
        return str(value)
    return None


def _from_base64(text: str) -> bytes:
    """The bytes of base64, also of a data URL."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    return b64decode(encoded, validate=True)


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


def listed(value: Any) -> list[Any]:
    """OpenAI's inputs: a text, a list of texts, the token ids of a text, or a list of these."""
    if isinstance(value, list) and not (value and type(value[0]) is int):
        return value
    return [value]


def check_count(field: str, values: Sequence[Any], most: int = BATCH) -> None:
    """Raises `InvalidInput` for an empty list and for one that is too long."""
    if not 1 <= len(values) <= most:
        raise InvalidInput(
            f"{field} is a list of 1 to {most:,} entries, not {len(values):,}: send the rest "
            "separately"
        )


async def answers(
    request: Request,
    inputs: Sequence[bytes],
    parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]],
) -> list[bytes]:
    """The answer of the picked version to each input as JSON, in their order; the gateway puts them
    into batches.

    `parameters` are those of all inputs, or of each. Raises the error of the first input that was
    refused, and says which of several it is.
    """
    each = [parameters] * len(inputs) if isinstance(parameters, Mapping) else parameters

    async def answer(data: bytes, own: Mapping[str, Any]) -> bytes:
        return (await request.predict(data=data, parameters=own)).data

    if len(inputs) == 1:
        return [await answer(inputs[0], each[0])]
    _check_size(each, request.gateway.limits.body_bytes)
    # All are waited for: when one has failed, none of the others goes on unnoticed
    results = await asyncio.gather(*map(answer, inputs, each), return_exceptions=True)
    return [_good(result, number) for number, result in enumerate(results)]


def _check_size(parameters: Sequence[Mapping[str, Any]], most: int) -> None:
    """Raises `TooLarge` for long parameters: all of them go with each input."""
    texts = (value for own in parameters for value in own.values())
    size = sum(len(value) for value in texts if isinstance(value, str))
    if size > most:
        raise TooLarge(
            f"parameters for {len(parameters)} inputs come to {size:,} bytes: send fewer inputs "
            "with them"
        )


def _good(result: bytes | BaseException, number: int) -> bytes:
    """The answer to an input; raises its error, with the input's number where it is at fault."""
    if isinstance(result, InvalidInput):
        raise type(result)(f"input {number}: {result}") from result
    if isinstance(result, BaseException):
        raise result
    return result


def refuse_tensor_model(version: ServedVersion) -> None:
    """Raises `InvalidInput` for a model without a task, which takes tensors alone."""
    name = version.deployment
    if version.kind == TENSOR:
        raise InvalidInput(
            f"'{name}' takes tensors, not pictures or texts: POST them to "
            f"/v2/models/{name}/infer or /v1/models/{name}:predict"
        )


def not_supported(version: ServedVersion, what: str) -> InvalidInput:
    """The error of a request to a model of another task."""
    return InvalidInput(
        f"'{version.deployment}' does not support {what}: its task is "
        f"{version.task or 'unknown'}"
    )
