"""A model that answers token by token, on ONNX Runtime: its keys and values stay where they are
between steps.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelmill.engines.base import Arrays
from modelmill.engines.onnx_file import FILE
from modelmill.engines.onnx_runtime import load, reason
from modelmill.errors import BundleCorrupt, InvalidInput, ModelFailed
from modelmill.generation.generator import Generator

Logits = np.ndarray[Any, np.dtype[np.float32]]
KEPT_BYTES = 1 << 30
"""Memory for keys and values: as many texts grow beside one another as have room in it."""
RUN_BYTES = 256 << 20
"""Of logits that are answered at a time, if they are of more than one text."""
LEAST_ROWS = 2
"""A row alone would take another path through the runtime, and round otherwise."""


class Steps:
    """A graph with attention over kept keys and values (`com.microsoft.GroupQueryAttention`), for
    up to `slots` texts.

    Inputs `ids` INT64 [N, T], `seqlens` INT32 [N] (the places of each row, less one), `total`
    INT32, `keep` INT64 [1], and for each layer `past_key_i`, `past_value_i` FP32 [N, heads, places,
    width]; outputs `logits` FP32 [N, keep, tokens] of each row's last places, and `key_i`,
    `value_i`, which are written into the inputs' own memory. Slots in use are the first ones.
    """

    def __init__(self, folder: Path, threads: int, slots: int) -> None:
        try:
            self._session = load(folder / FILE, threads)
        except Exception as error:
            raise BundleCorrupt(f"{FILE} can't be loaded: {reason(error)}") from error
        pasts = [
            one for one in self._session.get_inputs() if one.name.startswith("past_")
        ]
        if not pasts:
            raise BundleCorrupt(
                f"{FILE} keeps no keys and values: it is no model that answers in steps"
            )
        _, heads, self.places, width = pasts[0].shape
        self._tokens = int(self._session.get_outputs()[0].shape[-1])
        self._most = max(self.places, RUN_BYTES // (4 * self._tokens))
        self.slots = max(
            1, min(slots, KEPT_BYTES // (4 * len(pasts) * heads * self.places * width))
        )
        rows = max(self.slots, LEAST_ROWS) + 1  # the last one is for `run`
        self._alone = threading.Lock()
        self._kept = {
            one.name: np.zeros((rows, heads, self.places, width), np.float32)
            for one in pasts
        }

    @property
    def nbytes(self) -> int:
        """Of the kept keys and values."""
        return sum(array.nbytes for array in self._kept.values())

    def prefill(self, slot: int, ids: Sequence[int], past: int) -> Logits:
        """Read tokens of a text after `past` ones that were read; the logits after the last one
        [tokens].
        """
        part = np.array([ids], np.int64)
        return np.asarray(
            self._run(slice(slot, slot + 1), part, np.array([past + len(ids)]))[0, -1]
        )

    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> Logits:
        """A token more for the text of each slot, from the first, of `lengths` tokens before it:
        logits [N, tokens].
        """
        count = len(tokens)
        rows = max(count, LEAST_ROWS)
        # A row that fills up writes to the last place of its slot, which no text ever uses.
        ids, after = np.zeros((rows, 1), np.int64), np.full(rows, self.places, np.int64)
        ids[:count, 0], after[:count] = tokens, np.array(lengths) + 1
        return self._run(slice(0, rows), ids, after)[:count, -1]

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """`ids` [N, T] to the `logits` after each of them [N, T, tokens], beside texts that
        grow.
        """
        ids, spare = arrays["ids"], len(next(iter(self._kept.values()))) - 1
        if ids.ndim != 2 or not ids.size or ids.shape[1] > self.places:
            raise InvalidInput(
                f"ids wants the shape [1 or more, 1 to {self.places}], not {list(ids.shape)}"
            )
        if ids.min() < 0 or ids.max() >= self._tokens:
            raise InvalidInput(f"ids are whole numbers from 0 to {self._tokens - 1:,}")
        if ids.size > self._most:
            raise InvalidInput(
                f"the logits of {ids.size:,} tokens are too large: send at most {self._most:,} at "
                "a time"
            )
        rows = slice(spare, spare + 1)
        with self._alone:
            found = [
                self._run(rows, row[None], np.array([len(row)]), keep=len(row))
                for row in ids
            ]
        return {"logits": np.concatenate(found)}

    def move(self, source: int, target: int, length: int) -> None:
        """The text of one slot into another."""
        for array in self._kept.values():
            array[target, :, :length] = array[source, :, :length]

    def _run(
        self,
        rows: slice,
        ids: np.ndarray[Any, Any],
        after: np.ndarray[Any, Any],
        keep: int = 1,
    ) -> Logits:
        binding = self._session.io_binding()
        binding.bind_cpu_input("ids", np.ascontiguousarray(ids))
        binding.bind_cpu_input("seqlens", (after - 1).astype(np.int32))
        binding.bind_cpu_input("total", np.array(after.max(), np.int32))
        binding.bind_cpu_input("keep", np.array([keep], np.int64))
        binding.bind_output("logits", "cpu")
        for name, array in self._kept.items():
            view = array[rows]
            binding.bind_input(name, "cpu", 0, np.float32, view.shape, view.ctypes.data)
            binding.bind_output(
                name.removeprefix("past_"),
                "cpu",
                0,
                np.float32,
                view.shape,
                view.ctypes.data,
            )
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise ModelFailed(f"the model failed: {reason(error, 300)}") from error
        logits: Logits = binding.get_outputs()[0].numpy()
        return logits


class StepWriter(Generator):
    """Texts that take turns in the slots of a graph's steps, and `run` beside them."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps)
        self.run = steps.run
