"""Texts that grow beside one another: who joins, who leaves, what is told, and that company changes
nothing.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.errors import InvalidInput
from modelmill.generation.generator import Generator
from modelmill.generation.sampling import choose, logprobs, sampling
from modelmill.streams import Sampling, Text

LETTERS = "abcdefghij"
END = 10


class Counting:
    """An engine that says the next letter of the alphabet, and END behind the last; it checks how
    it is used.
    """

    def __init__(self, slots=3, places=100):
        self.slots, self.places = slots, places
        self.kept = [[] for _ in range(slots)]
        self.most = 0

    def _logits(self, ids):
        row = np.full(11, -5.0, np.float32)
        row[(ids[-1] + 1) if ids[-1] < END else END] = 5
        return row

    def prefill(self, slot, ids, past):
        self.kept[slot] = [*self.kept[slot][:past], *ids]
        return self._logits(self.kept[slot])

    def step(self, tokens, lengths):
        self.most = max(self.most, len(tokens))
        found = []
        for slot, (token, length) in enumerate(
            zip(tokens, lengths, strict=True)
        ):
            assert len(self.kept[slot]) == length
            self.kept[slot].append(token)
            found.append(self._logits(self.kept[slot]))
        return np.stack(found)

    def move(self, source, target, length):
        self.kept[target] = list(self.kept[source][:length])


def text(name, prompt="a", **how):
    ids = [LETTERS.index(letter) for letter in prompt]
    asked = Sampling(**{"max_tokens": 50, "temperature": 0.0, **how})
    return Text(
        name, ids, asked, frozenset({END}), lambda token: LETTERS[token]
    )


def run(generator, *texts):
    for one in texts:
        generator.add(one)
    pieces = []
    while generator.busy:
        pieces += generator.tick()
    return pieces


def said(pieces, name):
    return "".join(piece.text for piece in pieces if piece.name == name)


def test_a_text_goes_on_until_it_ends_itself():
    pieces = run(Generator(Counting()), text("x", "abc"))
    assert said(pieces, "x") == "defghij"
    assert (pieces[-1].ended, pieces[-1].prompt_tokens, pieces[-1].tokens) == (
        "stop",
        3,
        8,
    )


def test_it_is_cut_at_the_most_tokens_and_at_the_end_of_the_context():
    assert (
        said(run(Generator(Counting()), text("x", max_tokens=3)), "x") == "bcd"
    )
    pieces = run(Generator(Counting(places=6)), text("x", "ab"))
    assert pieces[-1].ended == "length"
    assert len("ab" + said(pieces, "x")) <= 6


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [
        (("e",), "bcd"),
        (("ef", "gh"), "bcd"),
        (("xyz", "j"), "bcdefghi"),
        (("bcd",), ""),
        (("zz",), "bcdefghij"),
    ],
)
def test_a_stop_text_ends_it_and_is_never_sent(stop, wanted):
    pieces = run(Generator(Counting()), text("x", stop=stop))
    assert said(pieces, "x") == wanted
    assert pieces[-1].ended == "stop"


def test_what_may_become_a_stop_text_is_held_back_until_it_is_clear():
    pieces = run(Generator(Counting()), text("x", stop=("cdX",)))
    assert [piece.text for piece in pieces][:4] == ["b", "", "", "cde"]


def test_many_texts_share_the_slots_and_each_gets_its_own():
    engine = Counting(slots=3)
    texts = [text(number, LETTERS[number % 9]) for number in range(10)]
    pieces = run(Generator(engine), *texts)
    assert engine.most == 3
    for number in range(10):
        assert said(pieces, number) == LETTERS[number % 9 + 1 :]
    assert Counter(piece.name for piece in pieces if piece.ended) == Counter(
        range(10)
    )


@pytest.mark.parametrize(("most", "slots"), [(1, 1), (2, 2), (0, 3), (9, 3)])
def test_no_more_texts_share_the_slots_than_are_allowed(most, slots):
    engine = Counting(slots=3)
    pieces = run(
        Generator(engine, most), *(text(number) for number in range(6))
    )
    assert engine.most == slots
    assert {said(pieces, number) for number in range(6)} == {LETTERS[1:]}


def test_a_long_prompt_is_read_in_parts_while_the_others_go_on():
    engine = Counting(slots=3, places=2000)
    generator = Generator(engine)
    for name in ("one", "two"):
        generator.add(text(name))
    for _ in range(2):
        list(generator.tick())
    generator.add(
        Text(
            "long",
            [0] * 1000,
            Sampling(max_tokens=3, temperature=0.0),
            frozenset({END}),
            lambda t: LETTERS[t],
        )
    )
    steps = [[piece.name for piece in generator.tick()] for _ in range(4)]
    assert steps == [["one", "two"]] * 3 + [["one", "two", "long"]]
    pieces = run(generator)
    assert said(pieces, "long") == "cd"


def test_a_text_that_is_read_moves_when_another_leaves():
    engine = Counting(slots=2, places=2000)
    generator = Generator(engine)
    generator.add(text("short", "h"))
    generator.add(
        Text(
            "long",
            [1] * 700,
            Sampling(max_tokens=4, temperature=0.0),
            frozenset({END}),
            lambda t: LETTERS[t],
        )
    )
    assert said(run(generator), "long") == "cdef"
    assert engine.kept[0][:700] == [1] * 700


def test_a_late_text_joins_at_the_next_step():
    generator = Generator(Counting())
    generator.add(text("long"))
    for _ in range(3):
        list(generator.tick())
    generator.add(text("late", "i"))
    names = [piece.name for _ in range(4) for piece in generator.tick()]
    assert names[:2] == ["long", "late"]
    assert set(names) == {"late", "long"}


@pytest.mark.parametrize("name", ["first", "second", "waiting", "nobody"])
def test_a_cancelled_text_leaves_at_once_and_the_others_do_not_notice(name):
    generator = Generator(Counting(slots=2))
    for one in ("first", "second", "waiting"):
        generator.add(text(one))
    early = [piece for _ in range(4) for piece in generator.tick()]
    generator.cancel({name})
    pieces = early + run(generator)
    late = {piece.name for piece in pieces[len(early) :]}
    assert name not in late
    for one in {"first", "second", "waiting"} - {name}:
        assert said(pieces, one) == LETTERS[1:]


def test_many_texts_leave_together():
    generator = Generator(Counting(slots=3))
    for name in range(8):
        generator.add(text(name))
    early = [piece for _ in range(5) for piece in generator.tick()]
    generator.cancel({0, 2, 3, 5, 7})
    pieces = early + run(generator)
    assert {piece.name for piece in pieces[len(early) :]} == {1, 4, 6}
    assert [said(pieces, name) for name in (1, 4, 6)] == [LETTERS[1:]] * 3


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(LETTERS[:9]), st.integers(1, 12), st.integers(0, 5)
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 4),
)
def test_no_batch_mates_and_no_order_change_an_answer(asked, slots):
    generator, pieces = Generator(Counting(slots)), []
    for number, (letter, most, pause) in enumerate(asked):
        generator.add(text(number, letter, max_tokens=most))
        for _ in range(pause):
            pieces += generator.tick()
    pieces += run(generator)
    for number, (letter, most, _) in enumerate(asked):
        assert (
            said(pieces, number) == LETTERS[LETTERS.index(letter) + 1 :][:most]
        )


# ---- the choice


LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def drawn(how, count=4000):
    return Counter(choose(LOGITS, how, place) for place in range(count))


def test_tokens_come_as_often_as_the_model_says():
    found = drawn(Sampling())
    for token, share in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert found[token] / 4000 == pytest.approx(share, abs=0.03)


def test_less_likely_tokens_can_be_left_out():
    assert set(drawn(Sampling(top_k=2))) == {0, 1}
    assert set(drawn(Sampling(top_p=0.6))) == {0, 1}
    assert set(drawn(Sampling(top_p=1e-9))) == {0}
    assert set(drawn(Sampling(temperature=0))) == {0}
    assert drawn(Sampling(temperature=0.5))[0] > drawn(Sampling())[0]
    assert drawn(Sampling(temperature=100))[3] == pytest.approx(1000, abs=150)


def test_a_seed_and_a_place_decide():
    one, other = (
        [choose(LOGITS, Sampling(seed=seed), place) for place in range(50)]
        for seed in (1, 2)
    )
    assert one == [
        choose(LOGITS, Sampling(seed=1), place) for place in range(50)
    ]
    assert one != other


def test_what_was_there_is_less_likely_when_repetition_is_punished():
    how = Sampling(temperature=0, repetition_penalty=3.0)
    assert choose(LOGITS, how, 0, np.array([0])) == 1


def test_logarithms_are_those_of_the_shares():
    own, near = logprobs(LOGITS, 2, 2)
    assert own == pytest.approx(np.log(0.15), abs=1e-5)
    assert near == [
        (0, pytest.approx(np.log(0.5), abs=1e-5)),
        (1, pytest.approx(np.log(0.3), abs=1e-5)),
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"stop": ("",)}, "stop takes up to"),
        ({"stop": ("a",) * 9}, "stop takes up to"),
        ({"stop": 5}, "stop"),
        ({"temperature": True}, "not a truth value"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_invalid_sampling_parameters_are_refused_by_name(given, says):
    with pytest.raises(InvalidInput, match=says):
        sampling(given, Sampling())


def test_what_is_left_out_is_as_usual():
    usual = Sampling(temperature=0.3)
    assert sampling({"temperature": None, "stop": "x"}, usual) == Sampling(
        temperature=0.3, stop=("x",)
    )
