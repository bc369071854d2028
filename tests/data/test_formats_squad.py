"""SQuAD's JSON: questions about passages, in any language, with answers or none."""

import json

import pytest

from modelmill.data.base import open_source
from modelmill.data.formats import squad
from modelmill.errors import InvalidInput

PASSAGE = "Clara lives in Berkeley."


def document(*questions, context=PASSAGE):
    return {
        "data": [
            {
                "title": "x",
                "paragraphs": [{"context": context, "qas": list(questions)}],
            }
        ]
    }


def asked(id="1", answer="Berkeley", start=15, **more):
    return {
        "id": id,
        "question": "Where?",
        "answers": [{"text": answer, "answer_start": start}],
        **more,
    }


def read(root, files, **options):
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        (root / name).write_text(
            content if isinstance(content, str) else json.dumps(content),
            "utf-8",
        )
    with open_source(root) as source:
        return list(squad.read(source, options))


def test_questions_come_with_their_passages_and_answers(tmp_path):
    files = {
        "train-v1.1.json": document(asked()),
        "dev-v1.1.json": document(asked(), asked()),
    }
    items = read(tmp_path / "set", files)
    assert [item.split for item in items] == ["val", "val", "train"]
    assert json.loads(items[0].data) == {
        "question": "Where?",
        "context": PASSAGE,
    }
    assert items[0].target == (("Berkeley", 15),)
    assert len({item.name for item in items}) == 3
    with open_source(tmp_path / "set") as source:
        assert squad.detect(source)


def test_files_may_be_given_to_splits(tmp_path):
    files = {"A_dev.json": document(asked()), "A_test.json": document(asked())}
    items = read(tmp_path / "set", files, train="*_dev.json")
    assert [item.split for item in items] == ["train", "test"]


def test_a_question_may_have_no_answer_or_several(tmp_path):
    none = {"id": "1", "question": "Who?", "answers": [], "is_impossible": True}
    several = asked("2")
    several["answers"] += [
        {"text": "Berkeley", "answer_start": 15},
        {"text": "in Berkeley", "answer_start": 12},
    ]
    items = read(tmp_path / "set", {"a.json": document(none, several)})
    assert [item.target for item in items] == [
        (),
        (("Berkeley", 15), ("in Berkeley", 12)),
    ]


def test_other_scripts_are_as_good(tmp_path):
    context = "在歐洲,梵語的學術研究由德國學者開創。"
    items = read(
        tmp_path / "set",
        {
            "a.json": document(
                asked(answer="德國學者", start=12), context=context
            )
        },
    )
    assert items[0].target == (("德國學者", 12),)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "not in SQuAD's form"),
        ({"data": 5}, "SQuAD's form"),
        ({"data": [{}]}, "SQuAD's"),
    ],
)
def test_other_files_are_refused(tmp_path, content, says):
    with pytest.raises(InvalidInput, match=says):
        read(tmp_path / "set", {"a.json": content})


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (asked(start=3), "not where it says"),
        (asked(answer=""), "not where it says"),
        (asked(start="3"), "where"),
        ({"id": "1", "question": 5}, "no question or no passage"),
        (asked(answers="x"), "no known form"),
    ],
)
def test_a_question_that_does_not_fit_is_refused(tmp_path, question, says):
    (item,) = read(tmp_path / "set", {"a.json": document(question)})
    assert says in item.problem
