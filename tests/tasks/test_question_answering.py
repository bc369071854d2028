"""question-answering: what is read, which part answers, how likely, and how answers are
compared.
"""

import json

import numpy as np
import pytest
import torch

from modelmill.data.check import examine
from modelmill.errors import InvalidInput
from modelmill.tasks import question_answering as module
from modelmill.tasks.base import Context, Item, Measured, TrainSettings
from modelmill.tasks.networks.transformer import Encoder
from modelmill.tasks.question_answering import training
from modelmill.tasks.question_answering.features import (
    COUNT,
    endings,
    features,
    partners,
    window_baseline,
)
from modelmill.tasks.question_answering.measures import exact, f1, normal
from modelmill.tasks.question_answering.network import (
    Reader,
    ReaderEnsemble,
    SpanHead,
)

task = module.TASK

PASSAGE = "Ann has the red hat. Bob has the old key. Nobody has 7 maps."


def ask(question="Who has the key?", context=PASSAGE):
    return json.dumps({"question": question, "context": context})


@pytest.fixture
def context(tmp_path):
    how = task.prepare(
        [ask(), ask("Where is it?", "It is in Paris.")] * 3,
        module.Preprocessing(minimum_count=1),
        tmp_path,
    )
    return Context(preprocessing=how, labels=[], folder=tmp_path)


def answered(context, first, last, parameters=None, data=None, none=0.0):
    """The answer of a network that is sure of two places."""
    arrays = task.decode(data or ask(), context)
    size = len(arrays["passage"]) + 1
    start, end = np.full(size, -9.0), np.full(size, -9.0)
    start[first + 1] = end[last + 1] = np.log(0.8)
    start[0] = end[0] = np.log(max(none, 1e-9))
    notes = {
        name: one for name, one in arrays.items() if name.startswith("note:")
    }
    return task.encode(
        {"start": start, "end": end, **notes},
        context,
        task.parameters(parameters or {}),
    )


def test_the_answer_is_a_part_of_the_passage_in_characters(context):
    found = answered(context, 6, 6)
    assert found["answer"] == "Bob"
    assert PASSAGE[found["start"] : found["end"]] == "Bob"
    assert found["score"] == pytest.approx(0.64, abs=0.01)
    assert answered(context, 9, 10)["answer"] == "old key"


def test_the_answer_is_the_text_as_it_was_sent(context):
    said = "  É́tat \U0001f600 Bob\u00a0has ﬁve "
    found = answered(context, 2, 2, data=ask("Who?", said))
    assert said[found["start"] : found["end"]] == found["answer"] == "Bob"


def test_several_answers_do_not_overlap(context):
    found = answered(context, 6, 6, {"top_k": 3})
    assert len(found) == 3
    spans = [(one["start"], one["end"]) for one in found]
    assert all(
        a[1] <= b[0] or b[1] <= a[0]
        for i, a in enumerate(spans)
        for b in spans[i + 1 :]
    )
    assert [one["score"] for one in found] == sorted(
        (one["score"] for one in found), reverse=True
    )


def test_there_may_be_no_answer(context):
    assert answered(context, 6, 6, none=0.99)["answer"] == "Bob"
    assert (
        answered(context, 6, 6, {"handle_impossible_answer": True}, none=0.99)[
            "answer"
        ]
        == ""
    )
    assert (
        answered(context, 6, 6, {"handle_impossible_answer": True}, none=0.1)[
            "answer"
        ]
        == "Bob"
    )


def test_answers_are_at_most_so_long(context):
    assert (
        len(answered(context, 0, 12, {"max_answer_len": 2})["answer"].split())
        <= 2
    )


@pytest.mark.parametrize(
    ("data", "parameters", "says"),
    [
        ("{", {}, 'JSON of the form {"question"'),
        ('{"question": "x"}', {}, "JSON of the form"),
        ('{"question": 5, "context": "x"}', {}, "JSON of the form"),
        (ask(""), {}, "the text is empty"),
        (ask("Who?", " "), {}, "the text is empty"),
        (ask("Who?", "a " * 20_000), {}, "at most 16,384 are taken"),
        (None, {"top_k": 0}, "top_k is a whole number"),
        (None, {"max_answer_len": "x"}, "max_answer_len"),
        (None, {"topk": 1}, "top_k"),
    ],
)
def test_what_is_wrong_is_said(context, data, parameters, says):
    with pytest.raises(InvalidInput, match=says):
        answered(context, 0, 0, parameters, data)


def test_an_item_is_trained_on_where_its_answer_is(context):
    where = PASSAGE.index("Bob")
    inputs, targets = task.sample(
        Item("a", "", ask(), target=(("Bob", where),)), context
    )
    assert targets["spans"].tolist() == [[7, 7]] * 3
    assert inputs["passage"].shape == (context.preprocessing.max_length,)
    late = "word " * 500 + "Zoe has it."
    inputs, targets = task.sample(
        Item("a", "", ask("Who?", late), target=(("Zoe", 2500),)), context
    )
    assert 0 < targets["spans"][0, 0] <= context.preprocessing.max_length
    assert (
        task.sample(Item("a", "", ask(), target=()), context)[1][
            "spans"
        ].tolist()
        == [[0, 0]] * 3
    )


def test_words_that_question_and_passage_share_are_features():
    passage = [
        "Ann",
        "has",
        "the",
        "red",
        "hat",
        ".",
        "Bob",
        "has",
        "the",
        "old",
        "key",
        ".",
    ]
    question = ["Who", "has", "the", "old", "keys"]
    found = features(
        question,
        passage,
        partners(passage, question)[1],
        np.arange(2, 2 + len(passage)),
        30,
    )
    assert found.shape[0] == len(passage)
    assert found[:, 0].tolist() == [0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert found[8:10, 2].tolist() == [1, 1]
    assert found[6, 5] > found[0, 5]  # its sentence has more of the question
    asked = ["Who", "has", "the", "old", "key"]
    first, last = window_baseline(
        asked,
        passage,
        partners(passage, asked)[1],
        np.arange(2, 2 + len(passage)),
        30,
        1,
    )
    assert last == first + 1
    assert passage[first] not in asked


@pytest.mark.parametrize("kind", ["reader", "transformer"])
def test_padding_changes_nothing(kind):
    torch.manual_seed(0)
    if kind == "reader":
        network = Reader(
            50,
            width=16,
            hidden=12,
            layers=2,
            known=30,
            dropout=0.1,
            word_dropout=0.1,
        ).eval()
    else:
        network = SpanHead(
            Encoder(50, width=32, heads=2, layers=1, dropout=0.1), 32, 0.1
        ).eval()
    question = torch.tensor([[3, 4, 5, 0]])
    passage, common = (
        torch.randint(3, 50, (1, 20)),
        torch.randn(1, 20, module.COUNT),
    )
    endings, partners = (
        torch.randint(1, 500, (1, 20)),
        torch.randint(0, 4, (1, 20)),
    )
    with torch.inference_mode():
        short = network(question, passage, common, endings, partners)
        pad = torch.nn.functional.pad
        filled = [
            pad(passage, (0, 9)),
            pad(common, (0, 0, 0, 9)),
            pad(endings, (0, 9)),
            pad(partners, (0, 9)),
        ]
        for one, other in zip(short, network(question, *filled), strict=True):
            assert torch.allclose(one, other[:, :21], atol=1e-5)
            assert other[:, 21:].max() < -1000


def test_all_that_people_answered_is_right_in_training(context):
    where = PASSAGE.index("Bob")
    both = (("Bob", where), ("Bob has", where))
    spans = task.sample(Item("a", "", ask(), target=both), context)[1]["spans"]
    assert spans.tolist() == [[7, 7], [7, 8], [7, 7]]
    told = torch.full((1, 12), -5.0)
    told[0, 7] = told[0, 8] = 0
    batch = {"spans": torch.tensor(spans)[None], "passage": torch.ones(1, 11)}
    batch |= {
        name: torch.zeros(1, 11)
        for name in ("question", "features", "endings", "partners")
    }
    found = training.validate(lambda *_: (told, told), batch, TrainSettings())
    assert found["em"] == found["f1"] == 1


def test_words_that_are_spelt_alike_are_found():
    places, alike = partners(
        ["Teacher", "Nicola", "railway", "bat"], ["Teaching", "nikola", "cat"]
    )
    assert places.tolist() == [
        1,
        2,
        0,
        0,
    ]  # `bat` is too short to be like anything but itself
    assert alike[0] > 0.5
    assert alike[1] > 0.5
    assert alike[2:].tolist() == [0, 0]


def test_a_word_that_a_question_has_twice_is_found_where_it_goes_on():
    question = ["the", "cat", "of", "the", "king"]
    places, alike = partners(["of", "the", "king", ",", "the", "cat"], question)
    assert places.tolist() == [3, 4, 5, 0, 1, 2]
    assert alike.tolist() == [1, 1, 1, 0, 1, 1]


def test_a_question_does_not_attend_to_padding(context):
    question = " ".join(["who"] * module.QUESTION_TOKENS + ["Bob"])
    found = task.decode(ask(question), context)
    assert found["partners"].max() <= module.QUESTION_TOKENS


def test_the_ending_of_a_word_is_one_feature_in_any_word():
    one, other, third = endings(["Walking", "talking", "\ud800"])
    assert one == other != third
    assert min(one, third) > 0


def test_answers_are_compared_as_squad_does():
    assert normal("The  Cat's, hat!") == "cats hat"
    assert exact("the Cat", ["dog", "a cat"]) == 1
    assert f1("the old red hat", ["red hat"]) == pytest.approx(0.8)
    assert f1("", []) == exact("", []) == 1
    assert f1("x", []) == 0
    assert f1("\u5fb7\u570b\u5b78\u8005", ["\u5fb7\u570b"]) == pytest.approx(
        2 / 3
    )


def test_the_questions_about_a_passage_stay_in_one_split():
    passages = [
        f"Person {n} has a hat. Person {n} has a key." for n in range(30)
    ]
    items = [
        Item(f"{n}", "", ask(f"Who has {what} {n}?", text))
        for text in passages
        for n, what in enumerate("abcd")
    ]
    index, _ = examine(
        items,
        lambda item: task.fingerprint(item.data),
        lambda _: None,
        labelled=False,
        group_key=lambda item: task.group_key(item.data),
    )
    splits = index.split_array().reshape(30, 4)
    assert (splits == splits[:, :1]).all()
    assert np.bincount(splits[:, 0]).tolist() == [24, 3, 3]


def test_that_there_is_no_answer_is_measured(context):
    told = torch.full((2, 12), -9.0)
    told[0, 0] = told[1, 7] = 0
    batch = {
        "spans": torch.zeros(2, 3, 2, dtype=torch.long),
        "passage": torch.ones(2, 11),
    }
    batch |= {
        name: torch.zeros(2, 11)
        for name in ("question", "features", "endings", "partners")
    }
    found = training.validate(lambda *_: (told, told), batch, TrainSettings())
    assert found["em"] == found["f1"] == 0.5
    arrays = task.decode(ask(), context)
    answer = np.full(len(arrays["passage"]) + 1, -9.0)
    answer[0] = 0
    parameters = task.full_parameters([])
    assert (
        task.encode(
            {**arrays, "start": answer, "end": answer},
            context,
            parameters,
        )["answer"]
        == ""
    )


def test_it_is_measured_beside_the_sliding_window(context):
    said = [{"answer": "Bob"}, {"answer": "wrong"}]
    show = lambda rows: [ask() for _ in rows]  # noqa: E731
    found = module.metrics(
        Measured(
            outputs=said,
            truths=[["Bob"], ["Ann"]],
            labels=[],
            show=show,
            context=context,
        )
    )
    assert (
        found.metrics["em"],
        found.metrics["f1"],
        found.metrics["items"],
    ) == (
        0.5,
        0.5,
        2,
    )
    assert 0 <= found.metrics["f1_baseline"] <= 1


def passages(count, size):
    """A batch of passages whose tokens are numbered from 1, with answers in the middle; the last
    has none.
    """
    torch.manual_seed(3)
    length = torch.randint(size // 2, size + 1, (count,))
    ids = torch.arange(1, size + 1).repeat(count, 1)
    ids = ids * (ids <= length[:, None])
    first = 1 + (torch.rand(count) * (length - 3)).long()
    spans = torch.stack(
        [
            torch.stack([first, first + 1], 1),
            torch.stack([first + 1, first + 2], 1),
        ],
        1,
    )
    spans[-1] = 0
    return {
        "question": ids,
        "passage": ids,
        "endings": ids,
        "partners": ids,
        "features": ids[:, :, None].float(),
        "spans": spans,
    }


def test_passages_are_cut_in_training_and_never_in_their_answers():
    batch = passages(400, 30)
    found = training.crop(batch)
    for row, (before, after) in enumerate(
        zip(batch["spans"], found["spans"], strict=True)
    ):
        if before.any():
            assert (
                found["passage"][row][after - 1].tolist()
                == batch["passage"][row][before - 1].tolist()
            )
    assert found["passage"][-1].equal(batch["passage"][-1])
    assert found["endings"].equal(found["passage"])
    assert found["features"][:, :, 0].long().equal(found["passage"])
    sizes = [(one["passage"] != 0).sum(1) for one in (found, batch)]
    assert 0.3 < (sizes[0] < sizes[1]).float().mean() < 0.6
    inside = found["passage"] != 0
    assert (inside[:, 1:] <= inside[:, :-1]).all()  # no gap within


def test_readers_vote_by_their_probabilities():
    torch.manual_seed(0)
    members = [
        Reader(
            50,
            width=16,
            hidden=8,
            layers=1,
            known=40,
            dropout=0.0,
            word_dropout=0.0,
        )
        for _ in range(3)
    ]
    both = ReaderEnsemble(members).eval()
    rng = np.random.default_rng(0)
    question, passage = (
        torch.from_numpy(rng.integers(3, 50, (2, size))) for size in (6, 12)
    )
    common = torch.from_numpy(rng.random((2, 12, COUNT), np.float32))
    known = (question, passage, common, passage % 9 + 1, passage % 4)
    alone = torch.stack(
        [member(*known)[0].softmax(1) for member in members]
    ).mean(0)
    assert torch.allclose(both(*known)[0].exp(), alone, atol=1e-6)
    start, _ = both.train()(*known)
    assert len(start) == 6
    batch = dict(
        zip(
            ("question", "passage", "features", "endings", "partners"),
            known,
            strict=True,
        )
    )
    batch["spans"] = torch.tensor([[[1, 2]] * 3, [[12, 12]] * 3])
    torch.manual_seed(1)
    whole = training.loss(both, batch, TrainSettings())
    torch.manual_seed(1)
    part = training.crop(batch)
    each = [
        training._loss(
            *training._log_probabilities(member, part), part["spans"], 0.0
        )
        for member in members
    ]
    assert whole.item() == pytest.approx(
        torch.stack(each).mean().item(), rel=1e-5
    )
