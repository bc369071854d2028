"""Answers of text-generation: what an answer has of each token, and why an answer has ended."""

from collections.abc import Sequence

from modelmill.streams import LENGTH, Piece
from modelmill.tasks.base import Context
from modelmill.tasks.text_generation.prompts import tokenizer_of
from modelmill.types import Json


def likelihood(piece: Piece, context: Context) -> Json:
    """A token with the logarithm of its probability, and those of the likeliest ones."""
    near = [
        {**_named(token, context), "logprob": value}
        for token, value in piece.near
    ]
    return {
        **_named(piece.token, context),
        "logprob": piece.logprob,
        "offset": piece.place,
        "top": near,
    }


def _named(token: int, context: Context) -> Json:
    """A token as a text and as its bytes: of several that make up one letter, none is a text."""
    data = tokenizer_of(context).bytes_of(token)
    return {
        "token": written(token, context),
        "bytes": None if data is None else list(data),
    }


def details_of(pieces: Sequence[Piece], seed: int, context: Context) -> Json:
    """Every token of an answer and how it ended, in the shape of the Hugging Face API."""
    last = pieces[-1]
    return {
        "finish_reason": ended_by(last, context),
        "generated_tokens": last.tokens,
        "seed": seed,
        "prefill": [],
        "tokens": [_detail(piece, context) for piece in pieces],
    }


def _detail(piece: Piece, context: Context) -> Json:
    return {
        "id": piece.token,
        "text": written(piece.token, context),
        "logprob": piece.logprob,
        "special": piece.token in tokenizer_of(context).special,
    }


def ended_by(piece: Piece, context: Context) -> str:
    """Why an answer has ended, in Hugging Face's words."""
    if piece.ended == LENGTH:
        return "length"
    is_end = piece.token in tokenizer_of(context).ends
    return "eos_token" if is_end else "stop_sequence"


def usage_of(piece: Piece) -> Json:
    """The tokens of prompt and answer, by the last piece."""
    both = piece.prompt_tokens + piece.tokens
    return {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.tokens,
        "total_tokens": both,
    }


def written(token: int, context: Context) -> str:
    """A token as a text, special ones by their names."""
    return tokenizer_of(context).decode([token], special=True)
