"""Texts that grow, as they come."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from modelmill.client._connection import Connection, quoted, text_of
from modelmill.client.rows import Json
from modelmill.errors import MillError

EVENT, DONE = "data:", "[DONE]"


class Texts(Connection):
    """What a model that writes is asked."""

    def stream(
        self,
        deployment: str,
        text: str | os.PathLike[str],
        *,
        parameters: Mapping[str, Any] | None = None,
    ) -> Iterator[str]:
        """What comes behind a text (or a file's), part by part as it is written; `parameters` such
        as `{"seed": 1}`.
        """
        body = {
            "inputs": text_of(text),
            "parameters": dict(parameters or {}),
            "stream": True,
        }
        for event in self._told(f"/models/{quoted(deployment)}", body):
            if "token" not in event:
                raise MillError(f"'{deployment}' writes no texts")
            yield event["token"]["text"]

    def chat(
        self,
        deployment: str,
        messages: Sequence[Mapping[str, str]],
        *,
        parameters: Mapping[str, Any] | None = None,
    ) -> Iterator[str]:
        """The next message of a conversation (`{"role", "content"}` each), part by part as it is
        written.
        """
        body = {
            "model": deployment,
            "messages": list(messages),
            **(parameters or {}),
            "stream": True,
        }
        for event in self._told(
            f"/models/{quoted(deployment)}/v1/chat/completions", body
        ):
            for choice in event["choices"]:
                yield choice["delta"].get("content", "")

    def _told(self, path: str, body: Json) -> Iterator[Json]:
        """Server-sent events; one that tells of a failure raises it."""
        with self._sent(), self._http.stream("POST", path, json=body) as answer:
            if not answer.is_success:
                answer.read()
                raise self._failure(answer)
            if not answer.headers.get("content-type", "").startswith(
                "text/event-stream"
            ):
                raise MillError(f"{path} answers no stream: the model writes no texts")
            for line in answer.iter_lines():
                data = line.removeprefix(EVENT).strip()
                if not line.startswith(EVENT) or data == DONE:
                    continue
                event = msgspec.json.decode(data)
                if "error" in event:
                    told = event["error"]
                    raise MillError(
                        told["message"] if isinstance(told, dict) else str(told)
                    )
                yield event
