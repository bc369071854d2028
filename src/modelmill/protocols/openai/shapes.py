"""Generated texts in the shape of OpenAI's answers and events."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from modelmill.protocols.openai.completion_request import Completion
from modelmill.protocols.streams import event
from modelmill.types import Json, StreamPart


def whole(completion: Completion, answers: Sequence[Json]) -> bytes:
    """All answers of a request as one document."""
    choices = [_choice(completion, *each) for each in enumerate(answers)]
    usages = {number: answer["usage"] for number, answer in enumerate(answers)}
    usage = _sum(usages, completion.each)
    document = {
        **_head(completion, chunk=False),
        "choices": choices,
        "usage": usage,
    }
    return msgspec.json.encode(document)


def role_event(completion: Completion, number: int) -> bytes:
    """The event with which an answer of a chat begins."""
    delta = {"role": "assistant", "content": ""}
    return _event(
        completion, [{"index": number, "delta": delta, "finish_reason": None}]
    )


def part_event(completion: Completion, number: int, part: StreamPart) -> bytes:
    """The event of a part of an answer."""
    return _event(completion, [_delta(completion, number, part)])


def usage_event(completion: Completion, usages: Mapping[int, Json]) -> bytes:
    """The event with the tokens of all answers, by their numbers."""
    usage = _sum(usages, completion.each)
    return event(
        {**_head(completion, chunk=True), "choices": [], "usage": usage}
    )


def usage_of(part: StreamPart) -> Json:
    """The tokens of an answer, by its last part."""
    return {
        "prompt_tokens": part.prompt_tokens,
        "completion_tokens": part.number,
    }


def _head(completion: Completion, *, chunk: bool) -> Json:
    chat = f"chat.completion{'.chunk' if chunk else ''}"
    return {
        "id": completion.id,
        "object": chat if completion.chat else "text_completion",
        "created": completion.created,
        "model": completion.deployment,
    }


def _choice(completion: Completion, number: int, answer: Json) -> Json:
    """A whole answer, by its number."""
    text, tokens = answer["generated_text"], answer.get("logprobs")
    said: Json = (
        {"message": {"role": "assistant", "content": text}}
        if completion.chat
        else {"text": text}
    )
    return {
        "index": number,
        **said,
        "finish_reason": answer["finish_reason"],
        "logprobs": None if tokens is None else _logprobs(completion, tokens),
    }


def _delta(completion: Completion, number: int, part: StreamPart) -> Json:
    """A part of an answer, by the answer's number."""
    token = part.logprob
    said: Json = {"text": part.text}
    if completion.chat:
        said = {"delta": {"content": part.text} if part.text else {}}
    return {
        "index": number,
        **said,
        "finish_reason": part.finish_reason or None,
        "logprobs": None if token is None else _logprobs(completion, [token]),
    }


def _logprobs(completion: Completion, tokens: Sequence[Json]) -> Json:
    if completion.chat:
        return {"content": [_content(token) for token in tokens]}
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {best["token"]: best["logprob"] for best in token["top"]}
            for token in tokens
        ],
        "text_offset": [token["offset"] for token in tokens],
    }


def _content(token: Json) -> Json:
    """A token of a chat's answer, and those that were as likely."""
    own: dict[str, Any] = {
        name: token[name] for name in ("token", "logprob", "bytes")
    }
    return {**own, "top_logprobs": token["top"]}


def _sum(usages: Mapping[int, Json], each: int) -> Json:
    """The usage of all answers by their numbers; a prompt counts once, however many answer it."""
    prompts = {
        number // each: usage["prompt_tokens"]
        for number, usage in usages.items()
    }
    prompt_tokens = sum(prompts.values())
    completion_tokens = sum(
        usage["completion_tokens"] for usage in usages.values()
    )
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _event(completion: Completion, choices: list[Json]) -> bytes:
    return event({**_head(completion, chunk=True), "choices": choices})
