"""text-generation: how much of a text is a prompt, what is told of each token, and how well texts are foretold."""

import numpy as np
import pytest

from modelmill.errors import InvalidInput
from modelmill.predictor import read_golden, write_golden
from modelmill.tasks import text_generation as task
from modelmill.tasks._units import END, load_tokenizer
from modelmill.tasks.base import Context, Item

CHINESE = "磨坊裡的水流得很慢,人們在等待麵粉。"


@pytest.fixture(params=["char", "bpe"])
def context(tmp_path, request):
    texts = ["the mill grinds slowly ", "the water turns the wheel ", CHINESE] * 4
    how = task.Preprocessing(units=request.param, context=64, vocabulary=300)
    return Context(preprocessing=task.prepare(texts, how, tmp_path), labels=[], folder=tmp_path)


def prompt(context, text, **parameters):
    return task.begin("x", text, context, parameters).prompt


@pytest.mark.parametrize("text", ["the mill grinds " * 200, CHINESE * 50, "é漢\ud83d" * 100, "grinds\n"])
@pytest.mark.parametrize("last", [1, 20, 63, 64, 10**9])
def test_truncate_keeps_so_many_of_the_last_tokens(context, text, last):
    whole = load_tokenizer(context.folder / task.TOKENIZER).encode(task.without_surrogates(text)).ids
    found = prompt(context, text, truncate=last)
    assert len(found) == min(last, 63, len(whole))
    assert found[-1] == whole[-1]


def test_truncate_is_about_token_ids_too(context):
    assert prompt(context, "", token_ids=[5, 6, 7, 8], truncate=2) == [7, 8]


def test_a_book_is_refused_unless_its_end_is_asked_for(context):
    with pytest.raises(InvalidInput, match="truncate=N keeps the last N"):
        prompt(context, "the mill " * 1_000_000)
    assert len(prompt(context, "the mill " * 1_000_000, truncate=10**9)) == 63


def knows(context, *texts):
    """Scores of a model that knows some texts by heart, each with its end."""
    tokenizer = load_tokenizer(context.folder / task.TOKENIZER)
    known = [[*tokenizer.encode(text, add_special_tokens=False).ids, END] for text in texts]

    def score(arrays):
        ids = arrays["ids"][0]
        logits = np.full((1, len(ids), context.preprocessing.tokens), -30.0, np.float32)
        text = next(one for one in known if any(one[at : at + len(ids)] == ids.tolist() for at in range(len(one))))
        begin = next(at for at in range(len(text)) if text[at : at + len(ids)] == ids.tolist())
        logits[0, np.arange(len(ids)), text[begin + 1 : begin + 1 + len(ids)]] = 30
        return {"logits": logits}

    return score


def test_texts_that_are_known_by_heart_surprise_nobody_however_many_there_are(context):
    texts = ["the mill", "a wheel turns", "slowly \ud83d"]
    items = [Item(f"f:{number}", "", text) for number, text in enumerate(texts)]
    found = task.measure(knows(context, *(task.without_surrogates(text) for text in texts)), items, context)
    assert found.metrics["nats_per_char"] == pytest.approx(0, abs=1e-6)
    assert found.metrics["perplexity"] == pytest.approx(1)


def test_passages_of_one_text_are_measured_as_one(context):
    text = "the water of the mill is slow. " * 9
    parts = [Item("f:0+", "", text[:100]), Item("f:1+", "", text[100:150]), Item("f:2", "", text[150:])]

    def even(arrays):
        return {"logits": np.zeros((*arrays["ids"].shape, context.preprocessing.tokens), np.float32)}

    whole = task.measure(even, [Item("f", "", text)], context).metrics
    assert task.measure(even, parts, context).metrics == whole | {"items": 3}
    assert whole["perplexity"] == pytest.approx(context.preprocessing.tokens)


def test_half_a_letter_is_learnt_and_written_down_as_an_unknown_one(tmp_path):
    how = task.prepare(["a mill \ud83d", "a wheel"], task.Preprocessing(), tmp_path)
    assert how.tokens > 4
    write_golden(tmp_path, ["\ud83d?"], [[{"text": "\udc00"}]])
    assert read_golden(tmp_path) == [{"input": "??", "output": [{"text": "?"}]}]
