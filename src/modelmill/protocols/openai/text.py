"""OpenAI's completions and chat: generated texts, whole or as server-sent events."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from modelmill.errors import InvalidInput
from modelmill.protocols.base import (
    Endpoint,
    Request,
    Response,
    StreamingResponse,
    read_json,
)
from modelmill.protocols.inputs import listed, not_supported
from modelmill.protocols.openai.completion_request import (
    Completion,
    completion_of,
)
from modelmill.protocols.openai.parts import events
from modelmill.protocols.openai.shapes import whole
from modelmill.protocols.streams import after_first
from modelmill.tasks.kinds import Sent, sent
from modelmill.types import Json


async def completions(request: Request) -> Response | StreamingResponse:
    """Texts that go on from prompts."""
    document = await _document(request)
    prompts = listed(document.get("prompt", ""))
    if not prompts or not all(
        isinstance(prompt, str | list) for prompt in prompts
    ):
        raise InvalidInput(
            "prompt is a text, a list of texts, token ids, or a list of these"
        )
    return await _answer(
        request, document, [_prompt(prompt) for prompt in prompts]
    )


def _prompt(prompt: str | list[Any]) -> Sent:
    """A prompt: a text, or token ids. Raises `InvalidInput`."""
    if isinstance(prompt, list):
        return sent("token_ids", prompt, "prompt")
    return Sent(prompt.encode("utf-8", "replace"))


async def chat(request: Request) -> Response | StreamingResponse:
    """The next message of a conversation."""
    document = await _document(request)
    prompt = sent("conversation", document.get("messages"), "messages")
    return await _answer(request, document, [prompt], chat=True)


async def _document(request: Request) -> Json:
    """The body; a deployment in the path has precedence over its `model`. Raises `InvalidInput`."""
    document = read_json(await request.content())
    if isinstance(document, dict) and "name" in request.names:
        document["model"] = request.names["name"]
    if not isinstance(document, dict) or not isinstance(
        document.get("model"), str
    ):
        raise InvalidInput(
            'the JSON wants the form {"model": ..., "prompt" or "messages": ...}'
        )
    return document


async def _answer(
    request: Request,
    document: Json,
    prompts: Sequence[Sent],
    *,
    chat: bool = False,
) -> Response | StreamingResponse:
    version = request.pick(document["model"])
    if not version.grows:
        raise not_supported(version, "text generation")
    request.gateway.refuse_unservable(version)
    completion = completion_of(document, version.deployment, prompts, chat=chat)
    if not completion.stream:
        return await _whole(request, completion)
    return StreamingResponse(await after_first(events(request, completion)))


async def _whole(request: Request, completion: Completion) -> Response:
    """All answers at once; where one failed, nobody waits for the others."""
    tasks = [
        asyncio.create_task(_answer_to(request, *call))
        for call in completion.calls
    ]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return Response(whole(completion, answers))


async def _answer_to(request: Request, prompt: Sent, parameters: Json) -> Json:
    data, kind = prompt
    answer = await request.predict(data=data, kind=kind, parameters=parameters)
    return dict(msgspec.json.decode(answer.data))


ROUTES = [
    Endpoint("POST", "/v1/completions", completions),
    Endpoint("POST", "/v1/chat/completions", chat),
    # Hugging Face's client appends OpenAI's path to the URL of a model
    Endpoint("POST", "/models/{name}/v1/completions", completions),
    Endpoint("POST", "/models/{name}/v1/chat/completions", chat),
]
