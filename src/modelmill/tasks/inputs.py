"""What tasks share that take pictures, texts or recordings: how an input is read and sent."""

from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from modelmill.errors import InvalidInput
from modelmill.tasks.base import Arrays, Context, Raw, Task
from modelmill.tasks.decoding import (
    audio_decoder,
    image_decoder,
    text_tokenizer,
)
from modelmill.types import Struct, TensorSpec, Usage


class ImageTask(Task, ABC):
    """A task whose items are pictures: `image`, uint8 [height, width, channels]."""

    INPUT = "image"
    PREPROCESSING: ClassVar[type[Struct]] = image_decoder.Preprocessing

    def fingerprint(self, data: Raw) -> str:
        """The sha256 of the upright pixels; raises `InvalidInput`, `TooLarge`."""
        return image_decoder.fingerprint(data)

    def describe_inputs(self, samples: Sequence[Raw]) -> image_decoder.Look:
        """Sizes and colour of the training pictures."""
        return image_decoder.look(samples)

    def prepare(
        self, samples: Sequence[Raw], preprocessing: Any, folder: Path
    ) -> Any:
        """Size, colour and normalisation taken from the training pictures."""
        return image_decoder.prepare(samples, preprocessing)

    def inputs(self, context: Context) -> list[TensorSpec]:
        """`image`: uint8 [-1, height, width, channels]."""
        return [image_decoder.tensor(context.preprocessing)]

    def decode(
        self, data: Raw, context: Context, parameters: Any = None
    ) -> Arrays:
        """`image`: uint8 [height, width, channels]; raises `InvalidInput`, `TooLarge`."""
        return {"image": image_decoder.decode(data, context.preprocessing)}

    def usage(self, inputs: Arrays, outputs: Arrays, context: Context) -> Usage:
        """`pixels` of the pictures as the model sees them."""
        return {"pixels": pixels_of(inputs["image"])}

    def as_sent(self, data: Raw) -> bytes | str:
        """A picture as a file: PNG where the data set has mere pixels."""
        return (
            image_decoder.png(data)
            if isinstance(data, np.ndarray)
            else file_of(data)
        )


class TextTask(Task, ABC):
    """A task whose items are texts: `ids`, int64 [max_length]."""

    INPUT = "text"
    PREPROCESSING: ClassVar[type[Struct]] = text_tokenizer.Preprocessing

    def fingerprint(self, data: Raw) -> str:
        """The sha256 of the stripped text; raises `InvalidInput`."""
        return text_tokenizer.fingerprint(data)

    def prepare(
        self, samples: Sequence[Any], preprocessing: Any, folder: Path
    ) -> Any:
        """The tokenizer and the length, learnt from the training texts."""
        return text_tokenizer.prepare(samples, preprocessing, folder)

    def inputs(self, context: Context) -> list[TensorSpec]:
        """`ids`: int64 [-1, max_length]."""
        return [text_tokenizer.tensor(context.preprocessing)]

    def decode(
        self, data: Raw, context: Context, parameters: Any = None
    ) -> Arrays:
        """`ids`: int64 [max_length]; raises `InvalidInput`."""
        ids = text_tokenizer.decode(data, context.preprocessing, context.folder)
        return {"ids": ids}

    def usage(self, inputs: Arrays, outputs: Arrays, context: Context) -> Usage:
        """`prompt_tokens` of the texts as far as the model reads them."""
        return {"prompt_tokens": int(np.count_nonzero(inputs["ids"]))}

    def as_sent(self, data: Raw) -> str:
        """The text itself."""
        return text_tokenizer.text_of(data)


class AudioTask(Task, ABC):
    """A task whose items are recordings."""

    INPUT = "audio"

    def fingerprint(self, data: Raw) -> str:
        """The sha256 of the samples and their rate; raises `InvalidInput`, `TooLarge`."""
        return audio_decoder.fingerprint(data)

    def usage(self, inputs: Arrays, outputs: Arrays, context: Context) -> Usage:
        """`audio_seconds` of the recordings as the model hears them."""
        return {
            "audio_seconds": inputs["audio"].size / context.preprocessing.rate
        }

    def as_sent(self, data: Raw) -> bytes:
        """The file itself."""
        return file_of(data)


def pixels_of(pictures: np.ndarray[Any, Any]) -> int:
    """The pixels of pictures [..., height, width, channels]."""
    return int(np.prod(pictures.shape[:-1]))


def file_of(data: Raw) -> bytes:
    """The file that an item of a data set is; raises `InvalidInput` for one that is none."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidInput("a file is wanted, as bytes")
    return bytes(data)
