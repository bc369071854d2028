"""OpenAI's completions and chat: texts that grow, whole or as server-sent events."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from modelmill import seeds
from modelmill.errors import InvalidInput, MillError
from modelmill.protocols.base import Endpoint, Request, Response, Stream, read_json
from modelmill.protocols.inputs import listed, pick
from modelmill.protocols.openai.errors import error
from modelmill.protocols.streams import begun, event
from modelmill.serve.gateway import Gateway
from modelmill.types import Json, KeyInfo, ServedVersion, StreamPart

NAME = "openai"
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
"""Parameters that are called the same here; the last three are not OpenAI's, but its clients can
send them too.
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
"""What is not offered may be said where it changes nothing."""


class Asked(NamedTuple):
    """A request: the prompts with the parameters of each answer, and how to send what comes."""

    route: ServedVersion
    calls: list[tuple[bytes, Json]]
    chat: bool
    stream: bool
    usage: bool
    each: int
    """Answers to a prompt, which stand beside one another."""
    id: str
    created: int


async def completions(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Any:
    """Texts that go on from prompts."""
    document = _document(await request.content(), names)
    prompts = listed(document.get("prompt", ""))
    if not prompts or not all(isinstance(one, str | list) for one in prompts):
        raise InvalidInput(
            "prompt is a text, a list of texts, token ids, or a list of these"
        )
    return await _answered(
        gateway, caller, request, document, [_prompt(one) for one in prompts]
    )


def _prompt(one: str | list[Any]) -> tuple[bytes, Json]:
    """What is sent for a prompt: a text, or nothing beside its token ids."""
    return (
        (b"", {"token_ids": one})
        if isinstance(one, list)
        else (one.encode("utf-8", "replace"), {})
    )


async def chat(
    gateway: Gateway, caller: KeyInfo, request: Request, names: Mapping[str, str]
) -> Any:
    """The next message of a conversation."""
    document = _document(await request.content(), names)
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidInput('messages is a list of {"role": ..., "content": ...}')
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidInput(f"message {number} wants a role and a content")
    return await _answered(
        gateway, caller, request, document, [(b"", {"messages": messages})], chat=True
    )


def _document(body: bytes, names: Mapping[str, str]) -> Json:
    """The body; a path that names a deployment counts more than its `model`. Raises
    `InvalidInput`.
    """
    document = read_json(body)
    if isinstance(document, dict) and "name" in names:
        document["model"] = names["name"]
    if not isinstance(document, dict) or not isinstance(document.get("model"), str):
        raise InvalidInput(
            'the JSON wants the form {"model": ..., "prompt" or "messages": ...}'
        )
    return document


async def _answered(
    gateway: Gateway,
    caller: KeyInfo,
    request: Request,
    document: Json,
    prompts: Sequence[tuple[bytes, Json]],
    *,
    chat: bool = False,
) -> Response | Stream:
    route = pick(gateway, caller, request, document["model"])
    if not route.grows:
        raise InvalidInput(
            f"'{route.deployment}' writes no texts: its task is {route.task or 'unknown'}"
        )
    gateway.refuse_unservable(route)
    parameters, count = _parameters(document, chat), _count(document, len(prompts))
    seed = parameters.setdefault("seed", seeds.draw())
    if type(seed) is not int or not 0 <= seed <= MOST_SEED:
        raise InvalidInput(
            f"seed is a whole number from 0 to {MOST_SEED:,}, not {seed!r:.40}"
        )
    calls = [
        (prompt, {**parameters, **own, "seed": seed + number})
        for prompt, own in prompts
        for number in range(count)
    ]
    options = document.get("stream_options")
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise InvalidInput('stream_options wants the form {"include_usage": true}')
    kind = "chatcmpl" if chat else "cmpl"
    asked = Asked(
        route,
        calls,
        chat,
        _stream(document),
        bool(options.get("include_usage")),
        count,
        f"{kind}-{uuid.uuid4().hex}",
        int(time.time()),
    )
    if not asked.stream:
        return await _whole(gateway, caller, request, asked)
    return Stream(await begun(_events(gateway, caller, request, asked)))


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
            "best_of is not offered, other than as many as n: leave it out"
        )
    return count


def _stream(document: Json) -> bool:
    """Whether the answer is to be streamed; raises `InvalidInput`."""
    wanted = document.get("stream")
    if not isinstance(wanted, bool | None):
        raise InvalidInput(f"stream is true or false, not {wanted!r:.40}")
    return bool(wanted)


def _parameters(document: Json, chat: bool) -> Json:
    """What the task is told; raises `InvalidInput` for what is not offered."""
    for name, neutral in NEUTRAL.items():
        if document.get(name) not in (None, neutral):
            raise InvalidInput(f"{name} is not offered: leave it out")
    found = {name: document[name] for name in SAME if document.get(name) is not None}
    found.setdefault("temperature", 1.0)
    if (most := document.get("max_completion_tokens")) is not None:
        found["max_tokens"] = most
    elif not chat:
        found.setdefault("max_tokens", 16)  # OpenAI's default
    if chat and document.get("logprobs"):
        found["logprobs"] = document.get("top_logprobs") or 0
    elif not chat and document.get("logprobs") is not None:
        found["logprobs"] = document["logprobs"]
    return found


async def _whole(
    gateway: Gateway, caller: KeyInfo, request: Request, asked: Asked
) -> Response:
    async def one(data: bytes, parameters: Json) -> Json:
        answer = await gateway.predict(
            caller,
            asked.route,
            NAME,
            data=data,
            parameters=parameters,
            gone=request.gone,
            request_id=request.id,
        )
        return dict(msgspec.json.decode(answer.data))

    tasks = [asyncio.create_task(one(*call)) for call in asked.calls]
    try:
        found = await asyncio.gather(*tasks)
    finally:  # where one failed, nobody waits for the others
        for task in tasks:
            task.cancel()
    choices = [
        _choice(
            asked,
            number,
            answer["generated_text"],
            answer["finish_reason"],
            answer.get("logprobs"),
        )
        for number, answer in enumerate(found)
    ]
    usage = _sum(
        {number: answer["usage"] for number, answer in enumerate(found)}, asked.each
    )
    return Response(
        msgspec.json.encode(
            {**_head(asked, chunk=False), "choices": choices, "usage": usage}
        )
    )


def _head(asked: Asked, *, chunk: bool) -> Json:
    kind = (
        f"chat.completion{'.chunk' if chunk else ''}"
        if asked.chat
        else "text_completion"
    )
    return {
        "id": asked.id,
        "object": kind,
        "created": asked.created,
        "model": asked.route.deployment,
    }


def _choice(asked: Asked, number: int, text: str, reason: str, near: Any) -> Json:
    logprobs = _logprobs(asked, near) if near is not None else None
    if asked.chat:
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


def _logprobs(asked: Asked, near: Sequence[Json]) -> Json:
    if asked.chat:
        return {
            "content": [
                {name: one[name] for name in ("token", "logprob", "bytes")}
                | {"top_logprobs": one["top"]}
                for one in near
            ]
        }
    return {
        "tokens": [one["token"] for one in near],
        "token_logprobs": [one["logprob"] for one in near],
        "top_logprobs": [
            {best["token"]: best["logprob"] for best in one["top"]} for one in near
        ],
        "text_offset": [one["offset"] for one in near],
    }


def _sum(usages: Mapping[int, Json], each: int) -> Json:
    """The usage of all answers by their numbers; a prompt counts once, however many answer it."""
    prompts = {
        number // each: usage["prompt_tokens"] for number, usage in usages.items()
    }
    asked = sum(prompts.values())
    told = sum(usage["completion_tokens"] for usage in usages.values())
    return {
        "prompt_tokens": asked,
        "completion_tokens": told,
        "total_tokens": asked + told,
    }


# ---- as it grows


async def _events(
    gateway: Gateway, caller: KeyInfo, request: Request, asked: Asked
) -> AsyncGenerator[bytes]:
    """Server-sent events of all answers, as they come; a failure in between is one as well."""
    queue: asyncio.Queue[tuple[int, StreamPart | MillError | None]] = asyncio.Queue()

    async def one(number: int, data: bytes, parameters: Json) -> None:
        try:
            stream = gateway.stream(
                caller,
                asked.route,
                NAME,
                data=data,
                parameters=parameters,
                gone=request.gone,
                request_id=request.id,
            )
            async for part in stream:
                if part.text or part.logprob is not None or part.finish_reason:
                    queue.put_nowait((number, part))
            queue.put_nowait((number, None))
        except MillError as error:
            queue.put_nowait((number, error))

    tasks = [
        asyncio.create_task(one(number, *call))
        for number, call in enumerate(asked.calls)
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
                if asked.chat and number not in roles:
                    roles.add(number)
                    yield _event(
                        asked,
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
                yield _event(asked, [_delta(asked, number, part)])
        if asked.usage:
            yield (
                b"data: "
                + msgspec.json.encode(
                    {
                        **_head(asked, chunk=True),
                        "choices": [],
                        "usage": _sum(usages, asked.each),
                    }
                )
                + b"\n\n"
            )
        yield DONE
    finally:
        for task in tasks:
            task.cancel()


def _delta(asked: Asked, number: int, part: StreamPart) -> Json:
    reason = part.finish_reason or None
    near = None if part.logprob is None else _logprobs(asked, [part.logprob])
    if asked.chat:
        delta = {"content": part.text} if part.text else {}
        return {
            "index": number,
            "delta": delta,
            "finish_reason": reason,
            "logprobs": near,
        }
    return {
        "index": number,
        "text": part.text,
        "finish_reason": reason,
        "logprobs": near,
    }


def _event(asked: Asked, choices: list[Json]) -> bytes:
    return event({**_head(asked, chunk=True), "choices": choices})


ROUTES = [
    Endpoint("POST", "/v1/completions", completions),
    Endpoint("POST", "/v1/chat/completions", chat),
    # Hugging Face's client asks below the address of a model.
    Endpoint("POST", "/models/{name}/v1/completions", completions),
    Endpoint("POST", "/models/{name}/v1/chat/completions", chat),
]
