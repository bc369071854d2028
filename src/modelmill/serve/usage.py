"""What a call has used, as its worker says it beside the answer: by unit, see `wire.Usage`."""

from collections.abc import Sequence

import numpy as np

from modelmill.engines.base import Arrays
from modelmill.serve.wire import Usage
from modelmill.streams import Piece


def usage_of_arrays(inputs: Arrays, outputs: Arrays, rate: int) -> Usage:
    """What decoded inputs and the outputs of a task have used; both with the batch axis first.

    Pictures count as the model sees or makes them, texts by their tokens, recordings by their
    seconds at the `rate` of the model.
    """
    usage: Usage = {}
    if (picture := inputs.get("image", outputs.get("image"))) is not None:
        usage["pixels"] = int(np.prod(picture.shape[:-1]))
    if "audio" in inputs:
        usage["audio_seconds"] = inputs["audio"].size / rate
    ids = [inputs[name] for name in ("ids", "question", "passage") if name in inputs]
    if ids:
        usage["prompt_tokens"] = sum(int(np.count_nonzero(array)) for array in ids)
    if "tokens" in outputs:
        usage["completion_tokens"] = int(np.count_nonzero(outputs["tokens"]))
    return usage


def usage_of_texts(last: Sequence[Piece], seconds: float) -> Usage:
    """What a call has used whose texts ended with these pieces."""
    return {
        "prompt_tokens": sum(piece.prompt_tokens for piece in last),
        "completion_tokens": sum(piece.tokens for piece in last),
        "compute_seconds": seconds,
    }
