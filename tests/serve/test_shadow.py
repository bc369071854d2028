"""Whether a shadow says the same."""

import numpy as np
import pytest

from modelmill.serve.shadow import agree
from modelmill.serve.tensors import tensor_of, texts_of
from modelmill.serve.wire import Answer, Tensor


def said(text):
    return Answer(1, data=text.encode())


def tensors(*pairs):
    return Answer(
        1, tensors=[tensor_of(name, np.asarray(array)) for name, array in pairs]
    )


def floats(*values, kind=np.float32):
    return tensors(("scores", np.array(values).astype(kind)))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            said('[{"label":"a","score":0.9}]'),
            said('[{"label":"a","score":0.4}]'),
            True,
        ),
        (
            said('[{"label":"a","score":0.9}]'),
            said('[{"label":"b","score":0.9}]'),
            False,
        ),
        (
            said('[{"label":"a"},{"label":"b"}]'),
            said('[{"label":"a"},{"label":"c"}]'),
            True,
        ),
        (said('{"label":"a"}'), said('{"label":"a","score":1}'), True),
        (said("[]"), said("[]"), True),
        (said("[]"), said('[{"label":"a"}]'), False),
        (said('"yes"'), said('"yes"'), True),
        (said("1.5"), said("2.5"), False),
        (floats(0.1, 0.9), floats(0.105, 0.895), True),
        (floats(0.1, 0.9), floats(0.2, 0.8), False),
        (floats(np.nan), floats(np.nan), True),
        (floats(1e6), floats(1.001e6), True),
        (floats(0.5), floats(0.5, kind=np.float64), False),
        (floats(0.5, kind=np.float16), floats(0.501, kind=np.float16), True),
        (floats(0.5), floats(0.5, 0.5), False),
        (tensors(("y", [[1, 2]])), tensors(("y", [[1, 2]])), True),
        (tensors(("y", [[1, 2]])), tensors(("y", [[1], [2]])), False),
        (tensors(("y", [1, 2])), tensors(("y", [1, 3])), False),
        (
            tensors(("y", [1]), ("z", [2])),
            tensors(("z", [2]), ("y", [1])),
            True,
        ),
        (tensors(("y", [1]), ("z", [2])), tensors(("y", [1])), False),
        (
            Answer(1, tensors=[texts_of("t", [b"a"])]),
            Answer(1, tensors=[texts_of("t", [b"a"])]),
            True,
        ),
        (
            Answer(1, tensors=[texts_of("t", [b"a"])]),
            Answer(1, tensors=[texts_of("t", [b"b"])]),
            False,
        ),
        (said("[]"), floats(0.5), False),
        (floats(0.5), said("[]"), False),
    ],
)
def test_equal_labels_and_tensors_that_differ_by_rounding_are_the_same(
    one, other, same
):
    assert agree(one, other) is same


def test_bfloat16_differs_by_rounding_too():
    from ml_dtypes import bfloat16

    def half(value):
        return Answer(
            1,
            tensors=[
                Tensor(
                    "y",
                    "BF16",
                    [1],
                    np.array([value]).astype(bfloat16).tobytes(),
                )
            ],
        )

    assert agree(half(1.0), half(1.0078125))
    assert not agree(half(1.0), half(1.5))
