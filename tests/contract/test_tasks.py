"""Every task keeps the contract of `modelmill.tasks.base.Task`."""

import numpy as np
import pytest

from modelmill import plugins
from modelmill.data.base import Box, Item
from modelmill.engines.base import NUMPY
from modelmill.errors import InvalidInput
from modelmill.tasks.base import (
    NOTE,
    Context,
    Evaluation,
    GeneratingTask,
    Task,
    describe,
    plan,
    recipe_named,
    task_named,
)
from modelmill.tasks.kinds import input_kind, output_kind
from tests.helpers.pictures import png

TASKS = plugins.names("tasks")
LABELS = ["one", "two", "three"]
TRUTHS = {
    "label": LABELS,
    "boxes": [[Box(label, 8, 8, 24, 24)] for label in LABELS],
    "mask": [png(np.full((24, 24), number)) for number in range(len(LABELS))],
    "text": LABELS,
    "texts": [(label,) for label in LABELS],
    "answers": [((label, 0),) for label in LABELS],
}
"""What three items are measured by, for each target."""


@pytest.fixture(params=TASKS)
def task(request):
    return task_named(request.param)


def item_of(task):
    """What an item of a data set holds."""
    return input_kind(task.INPUT).sample()


@pytest.fixture
def context(task, tmp_path):
    how = task.prepare([item_of(task)] * 4, task.PREPROCESSING(), tmp_path)
    return Context(preprocessing=how, labels=LABELS, folder=tmp_path)


def test_it_has_every_name_of_the_contract(task):
    missing = sorted(
        name for name in Task.__annotations__ if not hasattr(task, name)
    )
    assert not missing
    assert all(input_kind(kind).article for kind in (task.INPUT, *task.kinds))
    assert output_kind(task.GIVES).meaning
    assert task.SUMMARY
    assert task.SAMPLES > 0


def test_its_default_recipe_exists_and_matches_its_preprocessing(task):
    assert task.RECIPE in plugins.names(plugins.recipes_of(task.name))
    for recipe in plugins.names(plugins.recipes_of(task.name)):
        assert isinstance(
            recipe_named(task.name, recipe).INPUT, task.PREPROCESSING
        )


def test_every_preprocessing_setting_has_a_help_text(task):
    assert [
        row["name"] for row in describe(task.PREPROCESSING()) if not row["help"]
    ] == []


def test_the_example_becomes_arrays_of_the_signature(task, context):
    arrays = task.decode(task.example(), context)
    specs = task.inputs(context)
    assert {name for name in arrays if not name.startswith(NOTE)} == {
        spec.name for spec in specs
    }
    for spec in specs:
        assert spec.shape[0] == -1
        assert arrays[spec.name].dtype == NUMPY[spec.datatype]
        shape = arrays[spec.name].shape
        if (
            isinstance(task, GeneratingTask) and len(spec.shape) > 1
        ):  # a request may ask for several rows
            assert shape[0] == 1
            shape = shape[1:]
        assert len(shape) == len(spec.shape) - 1
        for side, wanted in zip(shape, spec.shape[1:], strict=True):
            assert wanted in (-1, side)


def test_decoding_is_the_same_every_time(task, context):
    one, two = (task.decode(task.example(), context) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert task.fingerprint(item_of(task)) == task.fingerprint(item_of(task))


def test_prepare_leaves_nothing_to_the_data_twice(task, context, tmp_path):
    again = task.prepare([item_of(task)] * 4, context.preprocessing, tmp_path)
    assert again == context.preprocessing


def uniform(task, context):
    notes = {
        name: part
        for name, part in task.decode(task.example(), context).items()
        if name.startswith(NOTE)
    }
    return notes | {
        spec.name: np.full(
            [abs(side) for side in spec.shape[1:]],
            1 / spec.shape[-1],
            NUMPY[spec.datatype],
        )
        for spec in task.outputs(context)
    }


class UniformModel:
    """A model whose network says the same of everything."""

    def __init__(self, task, context):
        self.task, self.context = task, context

    def answers(self, items, parameters):
        for item in items:
            arrays = uniform(self.task, self.context)
            yield item, self.task.encode(arrays, self.context, parameters)


class Few(list):
    """Items in memory, as an evaluation reads them."""

    def rows(self, rows):
        return [self[row] for row in rows]


def test_uniform_scores_are_answered_with_labels(task, context):
    if task.METRIC != "accuracy":
        pytest.skip("its answers are not the labels of a whole input")
    answer = task.encode(uniform(task, context), context, task.parameters({}))
    assert {entry["label"] for entry in answer} == set(LABELS)
    assert all(
        entry["score"] == pytest.approx(1 / 3, abs=1e-5) for entry in answer
    )


def test_answers_are_evaluated(task, context):
    target = task.TARGETS[0]
    if target not in TRUTHS or task.METRIC == "recall_at_1":
        pytest.skip("what it is measured by is made from real items")
    items = [
        Item(
            label,
            label,
            item_of(task),
            target=None if target == "label" else one,
        )
        for label, one in zip(LABELS, TRUTHS[target], strict=True)
    ]
    found = task.evaluate(UniformModel(task, context), Few(items))
    assert isinstance(found, Evaluation)
    assert found.metrics["items"] == 3
    assert 0 <= found.metrics[task.METRIC] <= 1
    if task.METRIC == "accuracy":
        assert found.metrics["accuracy"] == pytest.approx(1 / 3)
    assert all(data.startswith(b"\x89PNG") for data in found.pictures.values())


@pytest.mark.parametrize("data", [b"", "", " ", 5, None])
def test_what_is_no_input_is_refused(task, context, data):
    if not (
        task.takes == "seed" and isinstance(data, str)
    ):  # which may be left out
        with pytest.raises(InvalidInput):
            task.decode(data, context)
    with pytest.raises(InvalidInput):
        task.fingerprint(data)


def test_its_settings_can_be_planned(task):
    assert plan(recipe_named(task.name, ""), {}).input is not None
