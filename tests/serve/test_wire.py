"""What is written into a frame is read out of it."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.serve.wire import (
    HEAD,
    Answer,
    Batch,
    Call,
    Tensor,
    frame,
    read_batch,
    read_calls,
)

IDS = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
TENSORS = st.lists(
    st.builds(
        Tensor,
        TEXT,
        st.sampled_from(["UINT8", "FP32"]),
        st.lists(IDS, max_size=4),
        st.binary(max_size=60),
    ),
    max_size=3,
)
PLAIN = st.none() | st.booleans() | IDS | st.floats(allow_nan=False) | TEXT
CALLS = st.lists(
    st.builds(
        Call,
        IDS,
        st.none() | st.binary(max_size=60),
        TENSORS,
        st.dictionaries(TEXT, PLAIN, max_size=3),
        st.lists(TEXT),
    ),
    max_size=5,
)
SECONDS = st.floats(allow_nan=False)
BATCHES = st.builds(
    Batch,
    st.lists(
        st.builds(Answer, IDS, st.binary(max_size=60), TENSORS, TEXT, TEXT),
        max_size=5,
    ),
    IDS,
    SECONDS,
    SECONDS,
    SECONDS,
)


def body_of(buffer):
    assert int.from_bytes(buffer[:HEAD], "little") == len(buffer) - HEAD
    return buffer[HEAD:]


@settings(max_examples=100, deadline=None)
@given(CALLS)
def test_calls_arrive_as_they_were_sent(calls):
    assert read_calls(body_of(frame(calls))) == calls
    assert read_calls(memoryview(bytes(body_of(frame(calls))))) == calls


@settings(max_examples=100, deadline=None)
@given(BATCHES)
def test_batches_arrive_as_they_were_sent(batch):
    assert read_batch(body_of(frame(batch))) == batch


def test_large_data_is_not_changed():
    data = bytes(range(256)) * 8192
    (call,) = read_calls(
        body_of(
            frame(
                [Call(1, data, [Tensor("x", "UINT8", [len(data)], data)], {})]
            )
        )
    )
    assert (call.data, call.tensors[0].data) == (data, data)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_what_is_no_frame_is_not_read(data):
    for read, kind in ((read_calls, list), (read_batch, Batch)):
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            assert isinstance(read(data), kind)


@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_a_cut_frame_is_not_read(cut):
    body = body_of(frame([Call(1, b"abc", [], {})]))
    with pytest.raises(msgspec.DecodeError):
        read_calls(body[:cut])
