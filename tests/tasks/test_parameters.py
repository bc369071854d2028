"""The parameters of a call are checked once, and what is wrong with them is named."""

from typing import Annotated, Literal

import pytest
from msgspec import Meta

from modelmill import plugins
from modelmill.errors import InvalidInput
from modelmill.tasks.base import task_named
from modelmill.tasks.parameters import (
    HIDDEN,
    Ignored,
    NoParameters,
    checked,
    describe_parameters,
)
from modelmill.types import Struct


class Some(Struct, frozen=True, kw_only=True):
    count: Annotated[int, Meta(ge=1, le=9, description="how many")] = 3
    share: Annotated[Annotated[float, Meta(gt=0, le=1)] | None, Meta()] = None
    form: Literal["png", "jpeg"] = "png"
    only: Annotated[Literal["a"], Meta(extra={"reason": "there is one"})] = "a"
    names: Annotated[
        list[str] | str | None,
        Meta(extra={"wanted": "a name or a list of names"}),
    ] = None
    full: bool = False
    prompt: Ignored = None
    inner: Annotated[int, Meta(extra=HIDDEN)] = 0

    def __post_init__(self):
        if self.full and self.form == "jpeg":
            raise ValueError("full does not go with form jpeg")


def test_what_is_left_out_or_null_is_as_usual():
    assert checked(Some, {}) == Some()
    assert checked(Some, {"count": None, "share": 1, "names": ["a"]}) == Some(
        share=1.0, names=["a"]
    )
    assert checked(Some, {"prompt": {"any": "thing"}, "inner": 4}).inner == 4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"count": 10}, "count is a whole number from 1 to 9, not 10"),
        ({"count": 1.5}, "count is a whole number from 1 to 9, not 1.5"),
        (
            {"count": True},
            "count is a whole number from 1 to 9, not a truth value",
        ),
        ({"share": 0}, "share is a number above 0 to 1, not 0"),
        ({"share": float("nan")}, "share is a number above 0 to 1, not nan"),
        ({"form": "gif"}, "form is one of png, jpeg, not 'gif'"),
        ({"only": "b"}, "only is 'a', not 'b': there is one"),
        ({"names": 5}, "names is a name or a list of names, not 5"),
        ({"full": "yes"}, "full is true or false, not 'yes'"),
        ({"cuont": 1}, "unknown parameter 'cuont'; did you mean 'count'?"),
        ({"full": True, "form": "jpeg"}, "full does not go with form jpeg"),
    ],
)
def test_what_is_wrong_is_named(given, says):
    with pytest.raises(InvalidInput) as refused:
        checked(Some, given)
    assert refused.value.message.startswith(says)


def test_hidden_ones_are_listed_nowhere():
    rows = list(describe_parameters(Some))
    assert [row["name"] for row in rows] == [
        "count",
        "share",
        "form",
        "only",
        "names",
        "full",
    ]
    assert rows[0] == {
        "name": "count",
        "default": 3,
        "allowed": "a whole number from 1 to 9",
        "help": "how many",
    }
    with pytest.raises(InvalidInput) as refused:
        checked(Some, {"xyz": 1})
    assert "inner" not in refused.value.message


@pytest.mark.parametrize("task", plugins.names("tasks"))
def test_every_parameter_of_a_task_has_a_help_text(task):
    kind = task_named(task).PARAMETERS
    rows = list(describe_parameters(kind))
    assert rows or kind is NoParameters
    assert [row["name"] for row in rows if not row["help"]] == []
