"""The part of the SDK that streams generated text."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from modelmill.client._connection import Connection, quoted, text_of
from modelmill.client.rows import Json
from modelmill.errors import MillError

if TYPE_CHECKING:
    import httpx2

EVENT, DONE = "data:", "[DONE]"


class Texts(Connection):
    """Streams of generated text."""

    def stream(
        self,
        deployment: str,
        text: str | os.PathLike[str],
        *,
        parameters: Mapping[str, Any] | None = None,
    ) -> Iterator[str]:
        """The continuation of a text (or a file's), chunk by chunk as it is generated; `parameters`
        such as `{"seed": 1}`.
        """
        body = {
            "inputs": text_of(text),
            "parameters": dict(parameters or {}),
            "stream": True,
        }
        for event in self._stream_events(f"/models/{quoted(deployment)}", body):
            if "token" not in event:
                raise MillError(f"'{deployment}' does not stream text")
            yield event["token"]["text"]

    def chat(
        self,
        deployment: str,
        messages: Sequence[Mapping[str, str]],
        *,
        parameters: Mapping[str, Any] | None = None,
    ) -> Iterator[str]:
        """The next message of a conversation (`{"role", "content"}` each), chunk by chunk as it is
        generated.
        """
        body = {
            "model": deployment,
            "messages": list(messages),
            **(parameters or {}),
            "stream": True,
        }
        for event in self._stream_events(
            f"/models/{quoted(deployment)}/v1/chat/completions", body
        ):
            for choice in event["choices"]:
                yield choice["delta"].get("content", "")

    def _stream_events(self, path: str, body: Json) -> Iterator[Json]:
        """Server-sent events; an error event raises `MillError`."""
        with (
            self._network_errors(),
            self._http.stream("POST", path, json=body) as answer,
        ):
            if not answer.is_success:
                answer.read()
                raise self._failure(answer)
            _check_stream(path, answer)
            yield from _events_in(answer.iter_lines())


def _check_stream(path: str, answer: "httpx2.Response") -> None:
    """Raises `MillError` for an answer that is no stream."""
    kind = answer.headers.get("content-type", "")
    if not kind.startswith("text/event-stream"):
        raise MillError(
            f"{path} returned no stream: the model does not generate text"
        )


def _events_in(lines: Iterable[str]) -> Iterator[Json]:
    """The events of a stream; raises `MillError` for one that is an error."""
    for line in lines:
        data = line.removeprefix(EVENT).strip()
        if line.startswith(EVENT) and data != DONE:
            yield _event(data)


def _event(data: str) -> Json:
    """The content of an event; raises `MillError` for one that is an error."""
    event: Json = msgspec.json.decode(data)
    if "error" in event:
        failure = event["error"]
        is_openai = isinstance(failure, dict)
        raise MillError(failure["message"] if is_openai else str(failure))
    return event
