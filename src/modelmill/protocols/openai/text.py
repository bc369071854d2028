"""OpenAI's completions and chat: generated texts, whole or as server-sent events."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from modelmill import seeds
from modelmill.errors import InvalidInput, MillError
from modelmill.protocols.base import (
    Endpoint,
    Request,
    Response,
    StreamingResponse,
    read_json,
)
from modelmill.protocols.inputs import listed, not_supported
from modelmill.protocols.openai.errors import error
from modelmill.protocols.streams import after_first, event
from modelmill.tasks.kinds import Sent, sent
from modelmill.types import Json, StreamPart

MOST, MOST_EACH = 256, 16
"""Answers to one request (prompts times `n`), and to one prompt."""
MOST_SEED = seeds.MOST - MOST
"""Each of several answers has the next one."""
DONE = b"data: [DONE]\n\n"
SAME = (
    "temperature",
    "top_p",
    "stop",
    "seed",
    "max_tokens",
    "top_k",
    "repetition_penalty",
    "truncate",
)
"""Parameters with the same name here; the last three are not OpenAI's, but its clients can send
them too.
"""
NEUTRAL: Json = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "suffix": None,
    "echo": False,
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
}
"""Parameters that are not supported, with the values at which they change nothing."""


class Completion(NamedTuple):
    """What a request wants: the parameters of each answer, and in which form they are sent."""

    deployment: str
    calls: list[tuple[Sent, Json]]
    chat: bool
    stream: bool
    usage: bool
    each: int
    """Answers to a prompt, which stand beside one another."""
    id: str
    created: int


async def completions(request: Request) -> Response | StreamingResponse:
    """Texts that go on from prompts."""
    document = await _document(request)
    prompts = listed(document.get("prompt", ""))
    if not prompts or not all(isinstance(prompt, str | list) for prompt in prompts):
        raise InvalidInput(
            "prompt is a text, a list of texts, token ids, or a list of these"
        )
    return await _answer(request, document, [_prompt(prompt) for prompt in prompts])


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
    if not isinstance(document, dict) or not isinstance(document.get("model"), str):
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
    parameters, count = _parameters(document, chat), _count(document, len(prompts))
    seed = parameters.setdefault("seed", seeds.draw())
    if type(seed) is not int or not 0 <= seed <= MOST_SEED:
        raise InvalidInput(
            f"seed is a whole number from 0 to {MOST_SEED:,}, not {seed!r:.40}"
        )
    calls = [
        (prompt, {**parameters, "seed": seed + number})
        for prompt in prompts
        for number in range(count)
    ]
    options = document.get("stream_options")
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise InvalidInput('stream_options wants the form {"include_usage": true}')
    kind = "chatcmpl" if chat else "cmpl"
    completion = Completion(
        version.deployment,
        calls,
        chat,
        _stream(document),
        bool(options.get("include_usage")),
        count,
        f"{kind}-{uuid.uuid4().hex}",
        int(time.time()),
    )
    if not completion.stream:
        return await _whole(request, completion)
    return StreamingResponse(await after_first(_events(request, completion)))


def _count(document: Json, prompts: int) -> int:
    """How many answers each prompt wants; raises `InvalidInput`."""
    count = 1 if document.get("n") is None else document["n"]
    if type(count) is not int or not 1 <= count <= MOST_EACH:
        raise InvalidInput(
            f"n is a whole number from 1 to {MOST_EACH}, not {count!r:.40}"
        )
    if count * prompts > MOST:
        raise InvalidInput(
            f"{prompts} prompts with n={count} want {count * prompts} answers; {MOST} are given "
            "at most"
        )
    if document.get("best_of") not in (None, count):
        raise InvalidInput(
            "best_of is not supported, other than as many as n: leave it out"
        )
    return count


def _stream(document: Json) -> bool:
    """Whether the answer is to be streamed; raises `InvalidInput`."""
    wanted = document.get("stream")
    if not isinstance(wanted, bool | None):
        raise InvalidInput(f"stream is true or false, not {wanted!r:.40}")
    return bool(wanted)


def _parameters(document: Json, chat: bool) -> Json:
    """The task's parameters; raises `InvalidInput` for what is not supported."""
    for name, neutral in NEUTRAL.items():
        if document.get(name) not in (None, neutral):
            raise InvalidInput(f"{name} is not supported: leave it out")
    parameters = {
        name: document[name] for name in SAME if document.get(name) is not None
    }
    parameters.setdefault("temperature", 1.0)
    if (most := document.get("max_completion_tokens")) is not None:
        parameters["max_tokens"] = most
    elif not chat:
        parameters.setdefault("max_tokens", 16)  # OpenAI's default
    if chat and document.get("logprobs"):
        parameters["logprobs"] = document.get("top_logprobs") or 0
    elif not chat and document.get("logprobs") is not None:
        parameters["logprobs"] = document["logprobs"]
    return parameters


async def _whole(request: Request, completion: Completion) -> Response:
    async def answer_to(prompt: Sent, parameters: Json) -> Json:
        data, kind = prompt
        answer = await request.predict(data=data, kind=kind, parameters=parameters)
        return dict(msgspec.json.decode(answer.data))

    tasks = [asyncio.create_task(answer_to(*call)) for call in completion.calls]
    try:
        answers = await asyncio.gather(*tasks)
    finally:  # where one failed, nobody waits for the others
        for task in tasks:
            task.cancel()
    choices = [
        _choice(
            completion,
            number,
            answer["generated_text"],
            answer["finish_reason"],
            answer.get("logprobs"),
        )
        for number, answer in enumerate(answers)
    ]
    usage = _sum(
        {number: answer["usage"] for number, answer in enumerate(answers)},
        completion.each,
    )
    document = {**_head(completion, chunk=False), "choices": choices, "usage": usage}
    return Response(msgspec.json.encode(document))


def _head(completion: Completion, *, chunk: bool) -> Json:
    kind = (
        f"chat.completion{'.chunk' if chunk else ''}"
        if completion.chat
        else "text_completion"
    )
    return {
        "id": completion.id,
        "object": kind,
        "created": completion.created,
        "model": completion.deployment,
    }


def _choice(
    completion: Completion, number: int, text: str, reason: str, tokens: Any
) -> Json:
    logprobs = _logprobs(completion, tokens) if tokens is not None else None
    if completion.chat:
        message = {"role": "assistant", "content": text}
        return {
            "index": number,
            "message": message,
            "finish_reason": reason,
            "logprobs": logprobs,
        }
    return {
        "index": number,
        "text": text,
        "finish_reason": reason,
        "logprobs": logprobs,
    }


def _logprobs(completion: Completion, tokens: Sequence[Json]) -> Json:
    if completion.chat:
        return {
            "content": [
                {name: token[name] for name in ("token", "logprob", "bytes")}
                | {"top_logprobs": token["top"]}
                for token in tokens
            ]
        }
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {best["token"]: best["logprob"] for best in token["top"]}
            for token in tokens
        ],
        "text_offset": [token["offset"] for token in tokens],
    }


def _sum(usages: Mapping[int, Json], each: int) -> Json:
    """The usage of all answers by their numbers; a prompt counts once, however many answer it."""
    prompts = {
        number // each: usage["prompt_tokens"] for number, usage in usages.items()
    }
    prompt_tokens = sum(prompts.values())
    completion_tokens = sum(usage["completion_tokens"] for usage in usages.values())
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


# ---- streams


async def _events(request: Request, completion: Completion) -> AsyncGenerator[bytes]:
    """Server-sent events of all answers, as they are written; a failure in between is an event."""
    queue: asyncio.Queue[tuple[int, StreamPart | MillError | None]] = asyncio.Queue()

    async def send_parts(number: int, prompt: Sent, parameters: Json) -> None:
        try:
            async for part in request.stream(prompt.data, parameters, prompt.kind):
                if part.text or part.logprob is not None or part.finish_reason:
                    queue.put_nowait((number, part))
            queue.put_nowait((number, None))
        except MillError as error:
            queue.put_nowait((number, error))

    tasks = [
        asyncio.create_task(send_parts(number, *call))
        for number, call in enumerate(completion.calls)
    ]
    left = len(tasks)
    sent = False
    roles = set[int]()
    usages = dict[int, Json]()
    try:
        while left:
            number, part = await queue.get()
            if isinstance(part, MillError):
                if not sent:
                    raise part
                yield b"data: " + error(part) + b"\n\n"
                left -= 1
            elif part is None:
                left -= 1
            else:
                if completion.chat and number not in roles:
                    roles.add(number)
                    yield _event(
                        completion,
                        [
                            {
                                "index": number,
                                "delta": {"role": "assistant", "content": ""},
                                "finish_reason": None,
                            }
                        ],
                    )
                sent = True
                if part.finish_reason:
                    usages[number] = {
                        "prompt_tokens": part.prompt_tokens,
                        "completion_tokens": part.number,
                    }
                yield _event(completion, [_delta(completion, number, part)])
        if completion.usage:
            yield (
                b"data: "
                + msgspec.json.encode(
                    {
                        **_head(completion, chunk=True),
                        "choices": [],
                        "usage": _sum(usages, completion.each),
                    }
                )
                + b"\n\n"
            )
        yield DONE
    finally:
        for task in tasks:
            task.cancel()


def _delta(completion: Completion, number: int, part: StreamPart) -> Json:
    reason = part.finish_reason or None
    logprobs = None if part.logprob is None else _logprobs(completion, [part.logprob])
    if completion.chat:
        delta = {"content": part.text} if part.text else {}
        return {
            "index": number,
            "delta": delta,
            "finish_reason": reason,
            "logprobs": logprobs,
        }
    return {
        "index": number,
        "text": part.text,
        "finish_reason": reason,
        "logprobs": logprobs,
    }


def _event(completion: Completion, choices: list[Json]) -> bytes:
    return event({**_head(completion, chunk=True), "choices": choices})


ROUTES = [
    Endpoint("POST", "/v1/completions", completions),
    Endpoint("POST", "/v1/chat/completions", chat),
    # Hugging Face's client appends OpenAI's path to the URL of a model
    Endpoint("POST", "/models/{name}/v1/completions", completions),
    Endpoint("POST", "/models/{name}/v1/chat/completions", chat),
]
