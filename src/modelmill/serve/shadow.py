"""Copies of answered calls for versions that are only watched: their answers are compared and
dropped.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np

from modelmill.engines.base import NUMPY
from modelmill.errors import MillError
from modelmill.serve.landed import Landed, Observer
from modelmill.serve.pool import Ask, Pool
from modelmill.serve.wire import Answer, Call, Tensor
from modelmill.types import ServedVersion

TOLERANCE = 1e-2
LAST = 1 << 30
"""The priority of copies: after all other calls."""

_running: set["asyncio.Task[None]"] = set()


def copies_to(shadows: Callable[[ServedVersion], Iterable[Pool]]) -> Observer:
    """An observer that sends a copy of each answered call to the shadows of its version, and notes
    whether theirs agree; nobody waits for them, and they may be dropped.
    """

    def copy(landed: Landed) -> None:
        if (
            not landed.picked.others
            or landed.answer is None
            or landed.call is None
        ):
            return
        ask = landed.ask._replace(
            gone=None, on_part=None, priority=LAST, pin=""
        )
        for pool in shadows(landed.picked):
            task = asyncio.ensure_future(
                _shadow(pool, landed.call, landed.answer, ask)
            )
            _running.add(task)  # else the loop could lose it
            task.add_done_callback(_running.discard)

    return copy


async def _shadow(pool: Pool, call: Call, answer: Answer, ask: Ask) -> None:
    started = time.monotonic()
    good = False
    series = pool.series
    try:
        other = await pool.submit(
            call.data, call.tensors, call.parameters, ask
        ).future
        good = not other.code
        series.shadow_answers += 1
        series.shadow_disagreements += not (good and agree(answer, other))
    except MillError:
        pass
    finally:
        series.answered("shadow", time.monotonic() - started, good)


def agree(one: Answer, other: Answer) -> bool:
    """Whether two answers say the same: equal top labels, or tensors that differ by rounding
    only.
    """
    if bool(one.data) != bool(other.data):
        return False
    if one.data:
        return bool(_top(one.data) == _top(other.data))
    theirs = {tensor.name: tensor for tensor in other.tensors}
    return all(
        tensor.name in theirs and _close(tensor, theirs[tensor.name])
        for tensor in one.tensors
    )


def _top(document: bytes) -> Any:
    """What an answer says first: its label where it has one."""
    answer = msgspec.json.decode(document)
    first = answer[0] if isinstance(answer, list) and answer else answer
    return first.get("label", first) if isinstance(first, dict) else first


def _close(one: Tensor, other: Tensor) -> bool:
    if (one.datatype, one.shape) != (other.datatype, other.shape):
        return False
    if not one.datatype.startswith(("FP", "BF")):
        return one.data == other.data
    mine, theirs = _numbers(one), _numbers(other)
    return bool(
        np.allclose(
            mine, theirs, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
        )
    )


def _numbers(tensor: Tensor) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.frombuffer(tensor.data, NUMPY[tensor.datatype]).astype(np.float64)
