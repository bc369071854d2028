"""How many rows a model gains from."""

import pytest

from modelmill import predictor
from modelmill.serve.batch_size import best_rows, knee, seconds_of_one
from modelmill.serve.wire import Answer, Batch
from modelmill.serve.worker import Worker
from modelmill.types import TensorSpec
from tests.helpers.bundles import a_manifest, picture_bundle


@pytest.mark.parametrize(
    ("times", "rows"),
    [
        ({}, 0),
        ({1: 1.0}, 1),
        ({1: 1e-4, 2: 2e-4, 4: 4e-4, 8: 8e-4}, 1),  # batches gain nothing
        ({1: 1e-4, 2: 1e-4, 4: 1e-4, 8: 1e-4}, 8),  # a batch costs as one call
        (
            {1: 1e-4, 2: 1.2e-4, 4: 1.8e-4, 8: 3.2e-4},
            4,
        ),  # light: the smallest that is nearly as good
        (
            {1: 1.0, 2: 1.2, 4: 1.8, 8: 3.2},
            8,
        ),  # heavy: the largest that is nearly as good
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.1}, 8),
        ({1: 1.0, 2: 1.2, 4: 1.6, 8: 3.2, 16: 6.4}, 8),  # as far as needed
        (
            {1: 1.0, 2: 1.2, 4: 1.6, 8: 3.2, 16: 4.8},
            16,
        ),  # farther where it gains
        ({1: 1.0, 2: 1.1, 4: 2.0, 8: 9.0}, 4),  # too many are worse
    ],
)
def test_a_batch_that_is_nearly_as_good_as_the_best(times, rows):
    assert knee(times) == rows


def test_a_real_model_is_tried_on_its_path(tmp_path):
    model = predictor.load(picture_bundle(tmp_path / "b"))
    worker = Worker(model, 1)
    assert best_rows(worker.answer, model.manifest) in (1, 2, 4, 8, 16, 32, 64)
    assert 0 < seconds_of_one(worker.answer, model.manifest) < 60


def test_a_model_that_can_not_be_tried_is_not_measured():
    def refuse(calls):
        return Batch(
            [
                Answer(call.id, code="model_failed", message="no")
                for call in calls
            ]
        )

    assert best_rows(refuse, a_manifest()) == 0
    assert seconds_of_one(refuse, a_manifest()) == float("inf")
    for shape, datatype in (
        ([-1], "BYTES"),
        ([-1, 3], "QUATERNION"),
        ([], "FP32"),
    ):
        manifest = a_manifest(
            inputs=[TensorSpec(name="x", datatype=datatype, shape=shape)]
        )
        assert best_rows(refuse, manifest) == 0
        assert seconds_of_one(refuse, manifest) == float("inf")
