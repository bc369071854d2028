"""The kinds of what models take and give: one row each, which all protocols read.

A task names the kind of its items (`Task.INPUT`), of what callers send (`Task.TAKES`) and of its
answers (`Task.GIVES`). A kind that is not listed here, as a plug-in may have it, is sent as a file
and answered as JSON.
"""

from typing import Literal, NamedTuple


class InputKind(NamedTuple):
    """A kind of input."""

    name: str
    article: str
    """As a sentence has it: "an image"."""
    sent_as: Literal["file", "text", "number", "json", "tensors"]
    """A file goes as it is, or in JSON as base64; a number goes as a text or a JSON number."""
    in_json: str
    """What JSON holds, as a message has it."""
    optional: bool = False
    """Whether it may be left out."""

    @property
    def is_text(self) -> bool:
        """Whether what reaches the task is a text, and not the bytes of a file."""
        return self.sent_as in ("text", "number", "json")


class OutputKind(NamedTuple):
    """A kind of answer."""

    name: str
    meaning: str


INPUTS = {
    kind.name: kind
    for kind in (
        InputKind("image", "an image", "file", "an image as base64, as a string"),
        InputKind("audio", "a recording", "file", "a recording as base64, as a string"),
        InputKind("video", "a video", "file", "a video as base64, as a string"),
        InputKind("text", "a text", "text", "a text, as a string"),
        InputKind(
            "seed",
            "a seed",
            "number",
            "a seed (a whole number), or nothing, as a string",
            optional=True,
        ),
        InputKind(
            "question", "a question", "json", '{"question": ..., "context": ...}'
        ),
        InputKind("tensor", "a tensor", "tensors", "a tensor as base64, as a string"),
    )
}
OUTPUTS = {
    kind.name: kind
    for kind in (
        OutputKind("labels", "labels with scores, the best first"),
        OutputKind("boxes", "labels with scores and boxes"),
        OutputKind("masks", "labels with scores and masks"),
        OutputKind("image", "pictures as base64, which may be sent as pictures"),
        OutputKind("text", "a text, with what is known of it"),
        OutputKind("tokens", "a text, which may be streamed token by token"),
        OutputKind("vector", "a list of numbers"),
        OutputKind("json", "JSON of the task's own"),
    )
}
TENSOR = "tensor"
"""What a model without a task takes."""
IMAGE = "image"


def input_kind(name: str) -> InputKind:
    """A kind of input, also one that only a plug-in knows."""
    article = f"an input of the kind '{name[:40]}'"
    unknown = InputKind(name, article, "file", f"{article} as base64, as a string")
    return INPUTS.get(name, unknown)
