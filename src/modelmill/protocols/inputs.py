"""Inputs of the protocols that take texts, pictures and sound: raw values in JSON, parameters, and
answers to many at once.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from modelmill.errors import InvalidInput, TooLarge
from modelmill.protocols.base import Request
from modelmill.tasks.kinds import TENSOR, Sent, input_kind
from modelmill.tasks.kinds.base import word_for
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
    return input_kind(kind).encoded(value, field)


def parameters_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The `parameters` of a request; raises `InvalidInput`."""
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInput(
            f"parameters is an object of names and values, not {word_for(parameters)}"
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
    inputs: Sequence[bytes | Sent],
    parameters: Mapping[str, Any],
) -> list[bytes]:
    """The answer of the picked version to each input as JSON, in their order; the gateway puts them
    into batches.

    An input of another kind than the version takes first is a `Sent`. Raises the error of the first
    input that was refused, and says which of several it is.
    """

    async def answer(one: bytes | Sent) -> bytes:
        data, kind = one if isinstance(one, Sent) else Sent(one)
        found = await request.predict(
            data=data, kind=kind, parameters=parameters
        )
        return found.data

    if len(inputs) == 1:
        return [await answer(inputs[0])]
    _check_size(parameters, len(inputs), request.gateway.limits.body_bytes)
    # All are waited for: when one has failed, none of the others goes on unnoticed
    results = await asyncio.gather(*map(answer, inputs), return_exceptions=True)
    return [_good(result, number) for number, result in enumerate(results)]


def _check_size(parameters: Mapping[str, Any], count: int, most: int) -> None:
    """Raises `TooLarge` for long parameters: all of them go with each of `count` inputs."""
    texts = (value for value in parameters.values() if isinstance(value, str))
    size = count * sum(map(len, texts))
    if size > most:
        raise TooLarge(
            f"parameters for {count} inputs come to {size:,} bytes: send fewer inputs with them"
        )


def _good(result: bytes | BaseException, number: int) -> bytes:
    """The answer to an input; raises its error, with the input's number where it is at fault."""
    if isinstance(result, InvalidInput):
        raise named(result, number) from result
    if isinstance(result, BaseException):
        raise result
    return result


def named(error: InvalidInput, number: int) -> InvalidInput:
    """The same error, which says of which of several inputs it is."""
    return type(error)(f"input {number}: {error}")


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
