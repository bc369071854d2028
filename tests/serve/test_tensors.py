"""Tensors travel as raw bytes and come out as the arrays they were."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelmill.engines.base import NUMPY
from modelmill.errors import InvalidInput
from modelmill.serve.tensors import (
    array_of,
    elements_of,
    pack_bytes,
    tensor_of,
    texts_of,
)
from modelmill.serve.wire import Tensor

NUMBERS = sorted(NUMPY.keys() - {"BYTES"})


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 4), (1, 1, 1), ()])
def test_numbers_come_out_as_they_went_in(datatype, shape):
    array = (
        np.arange(np.prod(shape, dtype=int))
        .reshape(shape)
        .astype(NUMPY[datatype])
    )
    tensor = tensor_of("x", array)
    assert (tensor.datatype, tensor.shape) == (datatype, list(shape))
    back = array_of(tensor)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(
        object,
        arrays.array_shapes(min_side=0, max_dims=3, max_side=4),
        elements=st.binary(max_size=9),
    )
)
def test_bytes_come_out_as_they_went_in(array):
    tensor = tensor_of("x", array)
    assert tensor.datatype == "BYTES"
    back = array_of(tensor)
    assert back.shape == array.shape
    assert list(back.flat) == list(array.flat)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8))
def test_elements_come_out_as_they_went_in(elements):
    tensor = texts_of("text", elements)
    assert tensor.shape == [len(elements)]
    assert elements_of(tensor) == elements


def test_texts_of_numpy_are_utf8():
    for array in (
        np.array(["é", "电影", ""]),
        np.array(["é", "电影", ""], object),
    ):
        assert elements_of(tensor_of("x", array)) == [
            "é".encode(),
            "电影".encode(),
            b"",
        ]
    assert elements_of(tensor_of("x", np.array([b"a", b"bc"]))) == [b"a", b"bc"]


@pytest.mark.parametrize(
    "data",
    [
        b"\1",
        b"\1\0\0",
        b"\1\0\0\0",
        b"\2\0\0\0a",
        b"\xff\xff\xff\xff",
        pack_bytes([b"ab"]) + b"\1\0\0\0",
    ],
)
def test_a_length_that_leads_beyond_the_data_is_refused(data):
    with pytest.raises(
        InvalidInput, match="input 'x': an element is longer than what was sent"
    ):
        elements_of(Tensor("x", "BYTES", [1], data))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=40),
    st.sampled_from(sorted(NUMPY)),
    st.lists(st.integers(-2, 2**40), max_size=3),
)
def test_any_bytes_are_read_or_refused(data, datatype, shape):
    with suppress(InvalidInput):
        assert array_of(Tensor("x", datatype, shape, data)).ndim == len(shape)
