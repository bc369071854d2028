"""Settings of a training: defaults of the recipe, overridden by name, checked before anything
runs.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.errors import InvalidInput, NotFound
from modelmill.tasks.base import (
    MOST_EPOCHS,
    describe,
    plan,
    recipe_named,
    task_named,
)

CNN = recipe_named("image-classification", "cnn")
BILSTM = recipe_named("text-classification", "bilstm")


def test_without_overrides_the_recipe_decides():
    chosen = plan(CNN, {})
    assert (chosen.train, chosen.input, chosen.network) == (
        CNN.TRAIN,
        CNN.INPUT,
        CNN.Settings(),
    )


@pytest.mark.parametrize(
    ("mean", "wanted"),
    [("0.1,0.2,0.3", (0.1, 0.2, 0.3)), ([0.1, 0.2, 0.3], (0.1, 0.2, 0.3))],
)
def test_mean_and_std_are_lists_and_go_together(mean, wanted):
    assert plan(CNN, {"mean": mean, "std": "1,1,1"}).input.mean == wanted
    with pytest.raises(InvalidInput, match="go together"):
        plan(CNN, {"mean": mean})


def test_a_value_that_is_no_choice_is_answered_with_the_choices():
    with pytest.raises(
        InvalidInput,
        match="optimiser=foo: choose one of adam, adamw, adadelta, sgd, muon",
    ):
        plan(CNN, {"optimiser": "foo"})


@pytest.mark.parametrize(
    ("name", "value", "part", "wanted"),
    [
        ("epochs", "3", "train", 3),
        ("epochs", 3, "train", 3),
        ("learning_rate", "1e-4", "train", 1e-4),
        ("learning_rate", 1, "train", 1.0),
        ("optimiser", "sgd", "train", "sgd"),
        ("filters", "8", "network", 8),
        ("dropout", "0", "network", 0.0),
        ("height", "32", "input", 32),
        ("fit", "pad", "input", "pad"),
        ("denoise", "3", "input", 3),
    ],
)
def test_a_setting_may_be_given_as_text(name, value, part, wanted):
    chosen = plan(CNN, {name: value})
    got = getattr(getattr(chosen, part), name)
    assert got == wanted
    assert type(got) is type(wanted)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("true", True), ("false", False), ("1", True), ("0", False)],
)
def test_yes_and_no_may_be_given_as_text(value, wanted):
    assert plan(BILSTM, {"lowercase": value}).input.lowercase is wanted


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("epoch", "epochs"),
        ("batchsize", "batch_size"),
        ("learning-rate", "learning_rate"),
        ("filter", "filters"),
    ],
)
def test_an_unknown_setting_suggests_the_near_one(name, near):
    with pytest.raises(
        InvalidInput, match=f"unknown setting '{name}'; did you mean '{near}'"
    ):
        plan(CNN, {name: "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", "0"),
        ("epochs", "1.5"),
        ("epochs", "many"),
        ("epochs", None),
        ("epochs", ""),
        ("epochs", [1]),
        ("epochs", True),
        ("batch_size", "-1"),
        ("learning_rate", "0"),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("momentum", "1"),
        ("optimiser", "adamm"),
        ("dropout", "1.5"),
        ("denoise", "4"),
        ("mean", "a,b"),
        ("mean", ""),
        ("height", "99999"),
        ("precision", "fp8"),
    ],
)
def test_a_value_out_of_range_is_named_in_the_message(name, value):
    with pytest.raises(InvalidInput, match=f"setting {name}=") as caught:
        plan(CNN, {name: value})
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {
            "epochs": "3",
            "filters3": "7",
            "mean": "0.5",
            "std": "0.25",
            "color": "grey",
            "precision": "fp32",
        },
    ],
)
def test_a_plan_written_flat_and_read_again_is_the_same_plan(overrides):
    chosen = plan(CNN, overrides)
    assert plan(CNN, chosen.flat()) == chosen
    assert plan(CNN, json.loads(json.dumps(chosen.flat()))) == chosen


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from([*plan(CNN, {}).flat(), "nonsense"]),
        st.text(max_size=6)
        | st.integers()
        | st.floats()
        | st.none()
        | st.lists(st.integers(), max_size=2),
        max_size=3,
    )
)
def test_any_overrides_are_a_plan_or_refused_in_words(overrides):
    try:
        chosen = plan(CNN, overrides)
    except InvalidInput:
        return
    assert plan(CNN, chosen.flat()) == chosen


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("", 0),
        ("90s", 90),
        ("10m", 600),
        ("1h", 3600),
        ("1.5h", 5400),
        ("2 m", 120),
    ],
)
def test_a_time_budget_is_a_number_and_a_unit(time, seconds):
    assert plan(CNN, {"time": time}).train.seconds == seconds


@pytest.mark.parametrize(
    "time",
    ["10", "m", "-5m", "0s", "10 minutes", "1e3s", "ten", "9" * 99 + "s"],
)
def test_a_time_budget_that_is_none_is_refused(time):
    with pytest.raises(
        InvalidInput, match=r"setting time=.*such as 90s, 10m or 1h"
    ):
        plan(CNN, {"time": time})


def test_with_a_time_budget_epochs_count_only_where_they_are_set():
    assert plan(CNN, {"time": "10m"}).train.epochs == MOST_EPOCHS
    assert plan(CNN, {"time": "10m", "epochs": "7"}).train.epochs == 7
    assert plan(CNN, {"time": ""}).train.epochs == CNN.TRAIN.epochs
    for asked in ({"time": "10m"}, {"time": "10m", "epochs": "7"}):
        chosen = plan(CNN, asked)
        assert plan(CNN, chosen.flat()) == chosen


def test_every_setting_is_described():
    rows = [
        row
        for part in plan(CNN, {}).sections().values()
        for row in describe(part)
    ]
    assert {row["name"] for row in rows} == plan(CNN, {}).flat().keys()
    assert (
        next(row for row in rows if row["name"] == "batch_size")["default"]
        == CNN.TRAIN.batch_size
    )


def test_an_empty_name_is_the_default_recipe():
    assert recipe_named("image-classification", "") is CNN


@pytest.mark.parametrize("recipe", ["", "cnn"])
def test_a_recipe_of_an_unknown_task_is_not_found(recipe):
    with pytest.raises(NotFound, match="unknown task"):
        recipe_named("image-classificatoin", recipe)
    with pytest.raises(NotFound, match="did you mean 'image-classification'"):
        task_named("image-classificatoin")
