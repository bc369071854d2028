"""Translation: the search finds the likeliest text, networks say the same in training and served,
and what is told.
"""

import itertools

import numpy as np
import pytest
import torch

from modelmill.errors import InvalidInput
from modelmill.tasks import translation
from modelmill.tasks.base import Context, Item, Measured
from modelmill.tasks.decoding.lossless_tokenizer import END, PAD, UNKNOWN
from modelmill.tasks.networks import seq2seq
from modelmill.tasks.translation.beam_search import LENGTH, search
from modelmill.tasks.translation.measures import measures, tokenization

TOKENS = 6


class Chain:
    """A network whose next token depends on the last one and on the sentence alone."""

    def __init__(self, count, seed=0):
        rng = np.random.default_rng(seed)
        self.table = (
            rng.normal(size=(count, TOKENS, TOKENS)).astype(np.float32) * 2
        )

    def begin(self):
        count = len(self.table)
        memory = np.arange(count, dtype=np.int64)[:, None]
        seen = np.ones((count, 3), bool)
        attention = np.full((count, 3), 1 / 3, np.float32)
        return {
            "logits": self.table[:, END],
            "attention": attention,
            "memory_number": memory,
            "memory_seen": seen,
            "state_steps": np.zeros((count, 1), np.int64),
        }

    def step(self, given):
        rows = given["memory_number"][:, 0]
        return {
            "logits": self.table[rows, given["token"]],
            "attention": given["memory_seen"] / np.float32(3),
            "next_steps": given["state_steps"] + 1,
        }

    def score(self, number, text):
        total, last = 0.0, END
        for token in [*text, END]:
            row = self.table[number, last].astype(np.float64)
            total += (
                row[token] - np.log(np.exp(row - row.max()).sum()) - row.max()
            )
            last = token
        return total / (len(text) + 1) ** LENGTH


@pytest.mark.parametrize("seed", range(4))
def test_with_enough_beams_the_likeliest_text_is_found(seed):
    network = Chain(3, seed)
    found = search(
        network.begin(),
        network.step,
        40,
        np.array([4, 4, 4]),
        END,
        (PAD, UNKNOWN),
    )
    allowed = [
        token for token in range(TOKENS) if token not in (PAD, UNKNOWN, END)
    ]
    texts = [
        text
        for length in range(4)
        for text in itertools.product(allowed, repeat=length)
    ]
    for number, one in enumerate(found):
        best = max(texts, key=lambda text: network.score(number, text))
        assert (*one.tokens.tolist(),) == best
        assert one.score == pytest.approx(network.score(number, best), abs=1e-4)
        assert one.attention.shape == (len(best), 3)


def test_a_sentence_is_translated_the_same_whatever_is_beside_it():
    network = Chain(5)
    together = search(
        network.begin(),
        network.step,
        3,
        np.array([9, 2, 9, 9, 9]),
        END,
        (PAD, UNKNOWN),
    )
    assert len(together[1].tokens) <= 2
    for number in (0, 2, 3, 4):
        alone = Chain(5)
        alone.table = network.table[number : number + 1]
        (one,) = search(
            alone.begin(), alone.step, 3, np.array([9]), END, (PAD, UNKNOWN)
        )
        assert one.tokens.tolist() == together[number].tokens.tolist()
        assert one.score == pytest.approx(together[number].score, abs=1e-5)


@pytest.fixture(params=["transformer", "recurrent"])
def network(request):
    torch.manual_seed(0)
    if request.param == "transformer":
        return seq2seq.Transformer(
            30, width=32, heads=2, layers=2, dropout=0.1
        ).eval()
    return seq2seq.Recurrent(30, width=16, hidden=24, dropout=0.1).eval()


def test_decoding_step_by_step_gives_the_logits_of_training(network):
    ids = torch.tensor([[5, 6, 7, 8, 0], [9, 10, 0, 0, 0]])
    target = torch.tensor([[11, 12, 13, END], [14, END, 0, 0]])
    with torch.inference_mode():
        trained = network.logits(network(ids, target))
        logits, attention, *cache = network.begin(ids)
        memory = [
            one
            for one, name in zip(cache, network.cache_specs(), strict=True)
            if name.startswith("memory_")
        ]
        state = cache[len(memory) :]
        steps = [logits]
        for position in range(3):
            logits, attention, *state = network.step(
                target[:, position], *memory, *state
            )
            steps.append(logits)
            assert torch.allclose(attention.sum(1), torch.ones(2), atol=1e-5)
            assert attention[1, 2:].max() < 1e-6
    served = torch.stack(steps, 1)[target != 0]
    assert torch.allclose(served, trained, atol=1e-4)


def context(folder, **settings):
    pairs = [
        ("a red house", "ein rotes Haus"),
        ("a blue dog", "ein blauer Hund"),
    ]
    how = translation.TASK.prepare(
        pairs * 4,
        translation.Preprocessing(**{"vocabulary": 300, **settings}),
        folder,
    )
    return Context(preprocessing=how, labels=[], folder=folder)


def test_an_item_becomes_both_texts(tmp_path):
    where = context(tmp_path)
    item = Item("a:1", "", "a red dog", target=("ein roter Hund", "another"))
    inputs, targets = translation.TASK.sample(item, where)
    tokenizer = translation.load_tokenizer(tmp_path / translation.TOKENIZER)
    assert (
        tokenizer.decode([one for one in inputs["ids"] if one]) == "a red dog"
    )
    told = [int(one) for one in targets["target"] if one]
    assert told[-1] == END
    assert tokenizer.decode(told[:-1]) == "ein roter Hund"


@pytest.mark.parametrize(
    "text", ["嗨世界", "مرحبا", "a\x00b", "😀", "lone \ud800 half", "A" * 20]
)
def test_any_script_is_taken(tmp_path, text):
    arrays = translation.TASK.decode(text, context(tmp_path, max_length=60))
    assert (arrays["ids"] != PAD).any()
    assert UNKNOWN not in arrays["ids"]


@pytest.mark.parametrize(
    ("data", "parameters", "says"),
    [
        ("", {}, "empty"),
        ("word " * 500, {}, "send it sentence by sentence"),
        ("a", {"num_beams": 0}, "num_beams is a whole number from 1 to 16"),
        ("a", {"num_beams": 99}, "num_beams"),
        ("a", {"num_beams": "x"}, "num_beams"),
        ("a", {"max_length": True}, "max_length"),
        ("a", {"max_new_tokens": 10_000}, "max_new_tokens"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, data, parameters, says):
    with pytest.raises(InvalidInput, match=says):
        translation.TASK.decode(
            data, context(tmp_path), translation.TASK.parameters(parameters)
        )


def test_unknown_parameters_are_refused(tmp_path):
    answer = {
        "tokens": np.zeros(4, np.int64),
        "score": np.float32(0),
        "attention": np.zeros((4, 4)),
    }
    with pytest.raises(InvalidInput, match="num_beams"):
        translation.TASK.encode(
            answer,
            context(tmp_path),
            translation.TASK.parameters({"num_beam": 2}),
        )


def test_it_is_measured_by_bleu_and_chrf():
    text = "the quick brown fox jumps over the lazy dog"
    right = {
        "translation_text": text,
        "attention": [[1.0, 0.0]],
        "target_tokens": ["the"],
    }
    wrong = {
        "translation_text": "something else entirely",
        "attention": [],
        "target_tokens": [],
    }
    show = lambda rows: ["a sentence"] * len(rows)  # noqa: E731
    found = measures(
        Measured(
            outputs=[right] * 3,
            truths=[("no", text), (text,), (text,)],
            labels=[],
            show=show,
        )
    )
    assert found.metrics["bleu"] == pytest.approx(100)
    assert found.metrics["chrf"] == pytest.approx(100)
    assert "tok:13a" in found.metrics["bleu_signature"]
    assert found.pictures["attention-0.png"].startswith(b"\x89PNG")
    found = measures(
        Measured(outputs=[wrong], truths=[(text,)], labels=[], show=show)
    )
    assert found.metrics["bleu"] < 5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ein Haus", "13a"),
        ("这是一个房子", "zh"),
        ("これは家です", "char"),
        ("บ้าน", "char"),
    ],
)
def test_scripts_without_spaces_are_cut_by_character(text, wanted):
    assert tokenization([(text,)]) == wanted


@pytest.mark.parametrize("text", ["red dog " * 50, "嗨世界" * 99])
def test_a_text_that_is_too_long_is_measured_by_its_beginning(tmp_path, text):
    where = context(tmp_path)
    asked = translation.TASK.measured_by(Item("a", "", text), where)
    assert text.startswith(asked)
    ids = translation.TASK.decode(asked, where)["ids"]
    assert ids[-3] != PAD
    assert (
        translation.TASK.measured_by(Item("a", "", "a red dog"), where)
        == "a red dog"
    )
