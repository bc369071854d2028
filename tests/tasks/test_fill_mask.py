"""fill-mask: what is hidden, what is guessed and how it is told."""

import numpy as np
import pytest
import torch

from modelmill.data.base import Item
from modelmill.errors import InvalidInput
from modelmill.tasks import fill_mask
from modelmill.tasks.base import Context, TrainSettings
from modelmill.tasks.decoding.text_tokenizer import MASK, SPECIAL
from modelmill.tasks.fill_mask.training import hide, loss
from modelmill.tasks.fill_mask.words import tokenizer_of

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog"]
MASKED = SPECIAL.index(MASK)


@pytest.fixture
def context(tmp_path):
    how = fill_mask.TASK.prepare(TEXTS * 2, fill_mask.Preprocessing(), tmp_path)
    return Context(preprocessing=how, labels=[], folder=tmp_path)


def token(context, word):
    return tokenizer_of(context).id_of(word)


def answered(context, text, parameters=None, **logits):
    arrays = fill_mask.TASK.decode(text, context)
    scores = np.zeros(
        (len(arrays["places"]), context.preprocessing.tokens), np.float32
    )
    for word, value in logits.items():
        scores[:, token(context, word)] = value
    notes = {
        name: one for name, one in arrays.items() if name.startswith("note:")
    }
    return fill_mask.TASK.encode(
        {"logits": scores, **notes},
        context,
        fill_mask.TASK.parameters(parameters or {}),
    )


def test_the_likeliest_words_fill_the_mask(context):
    found = answered(context, f"The {MASK} sat", cat=9.0, dog=8.0)
    assert [one["token_str"] for one in found[:2]] == ["cat", "dog"]
    assert found[0]["sequence"] == "The cat sat"
    assert found[0]["score"] > found[1]["score"] > found[2]["score"]
    assert len(found) == 5


def test_each_mask_has_a_list_of_its_own(context):
    found = answered(context, f"{MASK} and {MASK}", {"top_k": 1}, cat=9.0)
    assert [one[0]["sequence"] for one in found] == [
        f"cat and {MASK}",
        f"{MASK} and cat",
    ]


def test_some_words_may_be_compared(context):
    found = answered(
        context, f"the {MASK}", {"targets": ["dog", "mat"]}, cat=9.0, dog=2.0
    )
    assert [one["token_str"] for one in found] == ["dog", "mat"]


@pytest.mark.parametrize(
    ("text", "parameters", "says"),
    [
        ("no gap", {}, "the text has no \\[MASK\\]: write it"),
        (
            " ".join([MASK] + ["cat"] * 50 + [MASK]),
            {},
            "1 of 2 \\[MASK\\] stand after the",
        ),
        ("", {}, "empty"),
        (MASK, {"top_k": 0}, "top_k is a whole number"),
        (MASK, {"top_k": True}, "top_k is a whole number"),
        (MASK, {"targets": []}, "targets is a word or a list of words"),
        (MASK, {"targets": "zeppelin"}, "knows no single token 'zeppelin'"),
        (MASK, {"topk": 3}, "top_k"),
    ],
)
def test_what_is_wrong_is_said(context, text, parameters, says):
    with pytest.raises(InvalidInput, match=says):
        answered(context, text, parameters)


@pytest.mark.parametrize("length", [1, 2, 30])
def test_words_are_hidden_and_never_what_is_none(length):
    torch.manual_seed(0)
    ids = torch.zeros(64, 40, dtype=torch.long)
    ids[:, :length] = torch.randint(1, 50, (64, length))
    shown, hidden = hide(ids, 50, None)
    assert hidden.any()
    assert (ids[hidden] >= len(SPECIAL)).all()
    assert (shown[~hidden] == ids[~hidden]).all()
    if length == 30:
        assert 0.17 < hidden.sum() / (ids >= len(SPECIAL)).sum() < 0.23
        assert 0.75 < (shown[hidden] == MASKED).float().mean() < 0.85
        assert (shown[hidden] >= MASKED).all()


def test_texts_of_nothing_but_padding_hide_nothing():
    shown, hidden = hide(torch.zeros(2, 5, dtype=torch.long), 50, None)
    assert not hidden.any()
    assert not shown.any()


def test_it_is_measured_by_the_words_that_are_hidden(context):
    def knows_all(arrays):
        # It sees the rest of the text, and this one knows the only text that fits.
        texts = [
            fill_mask.text_tokenizer.decode(
                text, context.preprocessing, context.folder
            )
            for text in TEXTS
        ]
        (fit,) = [
            text
            for text in texts
            if ((arrays["ids"][0] == text) | (arrays["ids"][0] == MASKED)).all()
        ]
        return {
            "logits": 20
            * np.eye(context.preprocessing.tokens, dtype=np.float32)[
                fit[arrays["places"]]
            ]
        }

    def knows_nothing(arrays):
        return {
            "logits": np.zeros(
                (*arrays["places"].shape, context.preprocessing.tokens),
                np.float32,
            )
        }

    best, worst = (
        fill_mask.metrics(
            model, [Item(text, "", text) for text in TEXTS], context
        ).metrics
        for model in (knows_all, knows_nothing)
    )
    assert (best["accuracy"], best["items"]) == (1.0, 3)
    assert best["perplexity"] == pytest.approx(1, abs=1e-3)
    assert worst["perplexity"] == pytest.approx(context.preprocessing.tokens)


@pytest.mark.parametrize(
    "text",
    [
        "磨坊裡的水流得很慢" * 60,
        "word " * 900,
        "cat " * 20 + "磨坊裡的水" * 99,
        "磨",
    ],
)
def test_a_text_to_measure_by_hides_something_that_is_read(context, text):
    sent = fill_mask.TASK.as_sent(
        fill_mask.TASK.measured_by(Item("a", "", text), context)
    )
    assert len(fill_mask.TASK.decode(sent, context)["places"]) == 1


def test_texts_whose_words_are_all_unknown_are_refused_in_words(
    context, tmp_path
):
    with pytest.raises(
        InvalidInput,
        match="no word of the texts is in them 2 times: bring more text",
    ):
        fill_mask.TASK.prepare(
            ["every word once"], fill_mask.Preprocessing(), tmp_path
        )
    with pytest.raises(InvalidInput, match="knows no word of the texts"):
        fill_mask.metrics(lambda arrays: {}, [Item("a", "", "磨坊裡")], context)


def test_a_batch_of_unknown_words_teaches_nothing():
    class Network(torch.nn.Module):
        tokens = 50

        def logits(self, ids, mask):
            return torch.zeros(int(mask.sum()), 50, requires_grad=True)

    found = loss(
        Network(), {"ids": torch.ones(2, 5, dtype=torch.int32)}, TrainSettings()
    )
    assert found.item() == 0
    found.backward()
