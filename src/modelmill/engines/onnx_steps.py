"""A model that answers token by token, on ONNX Runtime: its keys and values stay where they are
between steps.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelmill.engines.base import Arrays
from modelmill.engines.onnx_file import FILE
from modelmill.engines.onnx_runtime import open_graph, reason
from modelmill.errors import BundleCorrupt, InvalidInput, ModelFailed
from modelmill.generation.generator import Generator

Logits = np.ndarray[Any, np.dtype[np.float32]]
Cache = np.ndarray[Any, np.dtype[np.float32]]
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
        self._session = open_graph(folder / FILE, threads)
        pasts = self._pasts()
        self.places = int(pasts[0].shape[2])
        self._tokens = int(self._session.get_outputs()[0].shape[-1])
        self._most = max(self.places, RUN_BYTES // (4 * self._tokens))
        self.slots = max(1, min(slots, _most_slots(pasts)))
        self._alone = threading.Lock()
        # the last row is for `run`
        self._kept = _empty_cache(pasts, max(self.slots, LEAST_ROWS) + 1)

    def _pasts(self) -> list[Any]:
        """The inputs for keys and values; raises `BundleCorrupt` where there are none."""
        inputs = self._session.get_inputs()
        pasts = [one for one in inputs if one.name.startswith("past_")]
        if not pasts:
            raise BundleCorrupt(
                f"{FILE} keeps no keys and values: it is no model that answers in steps"
            )
        return pasts

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
            self._run(slice(slot, slot + 1), part, np.array([past + len(ids)]))[
                0, -1
            ]
        )

    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> Logits:
        """A token more for the text of each slot, from the first, of `lengths` tokens before it:
        logits [N, tokens].
        """
        count = len(tokens)
        rows = max(count, LEAST_ROWS)
        # A row that fills up writes to the last place of its slot, which no text ever uses.
        ids, after = (
            np.zeros((rows, 1), np.int64),
            np.full(rows, self.places, np.int64),
        )
        ids[:count, 0], after[:count] = tokens, np.array(lengths) + 1
        return self._run(slice(0, rows), ids, after)[:count, -1]

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """`ids` [N, T] to the `logits` after each of them [N, T, tokens], beside texts that
        grow.
        """
        ids, spare = arrays["ids"], len(next(iter(self._kept.values()))) - 1
        self._check_ids(ids)
        rows = slice(spare, spare + 1)
        with self._alone:
            found = [
                self._run(rows, row[None], np.array([len(row)]), keep=len(row))
                for row in ids
            ]
        return {"logits": np.concatenate(found)}

    def _check_ids(self, ids: np.ndarray[Any, Any]) -> None:
        """Raises `InvalidInput`."""
        if ids.ndim != 2 or not ids.size or ids.shape[1] > self.places:
            raise InvalidInput(
                f"ids wants the shape [1 or more, 1 to {self.places}], not {list(ids.shape)}"
            )
        if ids.min() < 0 or ids.max() >= self._tokens:
            raise InvalidInput(
                f"ids are whole numbers from 0 to {self._tokens - 1:,}"
            )
        if ids.size > self._most:
            raise InvalidInput(
                f"the logits of {ids.size:,} tokens are too large: send at most {self._most:,} at "
                "a time"
            )

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
        """The logits [N, keep, tokens] of tokens [N, T], after which rows are `after` long [N]."""
        binding = self._session.io_binding()
        binding.bind_cpu_input("ids", np.ascontiguousarray(ids))
        binding.bind_cpu_input("seqlens", (after - 1).astype(np.int32))
        binding.bind_cpu_input("total", np.array(after.max(), np.int32))
        binding.bind_cpu_input("keep", np.array([keep], np.int64))
        binding.bind_output("logits", "cpu")
        self._bind_cache(binding, rows)
        return self._logits(binding)

    def _logits(self, binding: Any) -> Logits:
        """Run the graph; raises `ModelFailed`."""
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise ModelFailed(
                f"the model failed: {reason(error, 300)}"
            ) from error
        logits: Logits = binding.get_outputs()[0].numpy()
        return logits

    def _bind_cache(self, binding: Any, rows: slice) -> None:
        """Let a run read and write the keys and values of rows in place."""
        for past, array in self._kept.items():
            view = array[rows]
            memory = ("cpu", 0, np.float32, view.shape, view.ctypes.data)
            binding.bind_input(past, *memory)
            binding.bind_output(past.removeprefix("past_"), *memory)


def _most_slots(pasts: Sequence[Any]) -> int:
    """How many texts have room in the memory for keys and values."""
    slot_bytes = 4 * sum(math.prod(past.shape[1:]) for past in pasts)
    return int(KEPT_BYTES // slot_bytes)


def _empty_cache(pasts: Sequence[Any], rows: int) -> dict[str, Cache]:
    """Keys and values by the names of their inputs, FP32 [rows, heads, places, width] each."""
    return {
        past.name: np.zeros((rows, *past.shape[1:]), np.float32)
        for past in pasts
    }


class StepWriter(Generator):
    """Texts that take turns in the slots of a graph's steps, and `run` beside them."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps)
        self.run = steps.run
