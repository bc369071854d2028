"""What a worker says that its answers have used."""

import queue
from pathlib import Path

import msgspec
import numpy as np
import pytest

from modelmill import predictor
from modelmill.serve.streaming import StreamWorker
from modelmill.serve.tensors import texts_of
from modelmill.serve.wire import ANSWER, STREAM, Call, Tensor
from modelmill.serve.worker import Worker
from modelmill.tasks.base import Context, task_named
from tests.helpers.bundles import picture_bundle
from tests.helpers.datasets import tones
from tests.helpers.pictures import png
from tests.helpers.text_bundles import (
    speech_bundle,
    text_bundle,
    text_vector_bundle,
    writing_bundle,
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """`loaded(bundle)`: a worker with a model of that kind."""
    workers = {}

    def worker(bundle):
        if bundle not in workers:
            folder = bundle(tmp_path_factory.mktemp(bundle.__name__) / "b")
            workers[bundle] = Worker(predictor.load(folder), 1)
        return workers[bundle]

    return worker


def used(worker, *calls):
    """The usage of each answer but for its seconds, which every good answer has."""
    found = []
    for answer in worker.answer(calls).answers:
        assert ("compute_seconds" in answer.usage) == (not answer.code)
        assert answer.usage.get("compute_seconds", 1) > 0
        rest = dict(answer.usage)
        rest.pop("compute_seconds", None)
        found.append(rest)
    return found


def grey(value):
    return png(np.full((2, 2), value))


def test_answers_do_not_share_what_a_task_says_of_each(loaded, monkeypatch):
    worker = loaded(picture_bundle)
    said = {"pixels": 4}
    monkeypatch.setattr(type(worker.model.task), "usage", lambda *_: said)
    one, two = worker.answer(
        [
            Call(1, grey(51), [], {}),
            Call(2, None, [texts_of("image", [grey(1), grey(2), grey(3)])], {}),
        ]
    ).answers
    assert said == {"pixels": 4}
    assert two.usage["compute_seconds"] == pytest.approx(
        3 * one.usage["compute_seconds"]
    )


def test_pictures_are_counted_by_their_pixels(loaded):
    rows = [texts_of("image", [grey(1), grey(2), grey(3)])]
    asked = [
        Call(1, grey(51), [], {}),
        Call(2, None, rows, {}, [ANSWER]),
        Call(3, b"no picture", [], {}),
    ]
    assert used(loaded(picture_bundle), *asked) == [
        {"pixels": 4},
        {"pixels": 12},
        {},
    ]


def test_of_tensors_nothing_is_known_but_the_time(loaded):
    picture = np.zeros((1, 2, 2, 1), np.uint8)
    tensor = Tensor("image", "UINT8", [1, 2, 2, 1], picture.tobytes())
    two = [Call(1, None, [tensor], {}), Call(2, None, [tensor], {})]
    assert used(loaded(picture_bundle), *two) == [{}, {}]
    mixed = [*two, Call(3, grey(51), [], {})]
    assert used(loaded(picture_bundle), *mixed) == [{}, {}, {"pixels": 4}]


def test_texts_are_counted_by_the_tokens_that_are_read(loaded):
    asked = [Call(1, b"good film", [], {}), Call(2, b"film", [], {})]
    assert used(loaded(text_bundle), *asked) == [
        {"prompt_tokens": 2},
        {"prompt_tokens": 1},
    ]


def test_the_tokens_of_an_embedding_are_those_that_its_answer_names(loaded):
    call = Call(1, b"a cat on a mat", [], {"usage": True})
    (answer,) = loaded(text_vector_bundle).answer([call]).answers
    named = msgspec.json.decode(answer.data)["tokens"]
    assert answer.usage["prompt_tokens"] == named > 1


def test_recordings_are_counted_by_their_seconds(loaded):
    worker = loaded(speech_bundle)
    (found,) = used(worker, Call(1, tones("ab"), [], {}))
    parameters = {"return_timestamps": True}
    (answer,) = worker.answer([Call(1, tones("ab"), [], parameters)]).answers
    seconds = msgspec.json.decode(answer.data)["duration"]
    assert found == {"audio_seconds": pytest.approx(seconds, abs=0.001)}


@pytest.mark.parametrize(
    ("task", "inputs", "outputs", "usage"),
    [
        (
            "question-answering",
            {"question": [[5, 6, 0]], "passage": [[7, 8, 9, 0]]},
            {},
            {"prompt_tokens": 5},
        ),
        (
            "translation",
            {"ids": [[5, 6, 0], [5, 0, 0]]},
            {"tokens": [[7, 8, 9], [7, 0, 0]]},
            {"prompt_tokens": 3, "completion_tokens": 4},
        ),
        (
            "unconditional-image-generation",
            {"latent": np.zeros((1, 2, 8))},
            {"image": np.zeros((1, 2, 4, 6, 3))},
            {"pixels": 48},
        ),
        ("text-generation", {"ids": [[1, 2, 3]]}, {}, {"prompt_tokens": 3}),
    ],
)
def test_a_task_says_what_a_call_used(task, inputs, outputs, usage):
    given, made = (
        {name: np.array(value) for name, value in arrays.items()}
        for arrays in (inputs, outputs)
    )
    context = Context(preprocessing=None, labels=[], folder=Path())
    assert task_named(task).usage(given, made, context) == usage


def test_written_texts_are_counted_by_their_tokens_and_streamed_one_by_one(
    tmp_path,
):
    model = predictor.load(writing_bundle(tmp_path / "b"))
    sent = queue.Queue()
    texts = StreamWorker(model)
    how = {"max_new_tokens": 5, "temperature": 0.0}
    texts.take(
        [
            Call(1, b"abc", [], how, [STREAM]),
            Call(2, None, [texts_of("text", [b"ab", b"xyz"])], how, [ANSWER]),
        ],
        sent.put,
    )
    answers = {}
    parts = []
    while len(answers) < 2:
        batch = sent.get(timeout=30)
        answers |= {answer.id: answer for answer in batch.answers}
        parts += batch.parts
    assert {one.id for one in parts} == {1}
    streamed = [one.part for one in parts]
    assert [part.number for part in streamed] == [1, 2, 3, 4, 5]
    whole = msgspec.json.decode(answers[1].data)
    assert "".join(part.text for part in streamed) == whole["generated_text"]
    assert [part.at for part in streamed] == [
        sum(len(part.text) for part in streamed[:count]) for count in range(5)
    ]
    assert [part.finish_reason for part in streamed] == [*[""] * 4, "length"]
    assert streamed[-1].ended_by == "length"
    assert {part.prompt_tokens for part in streamed} == {3}
    for number, prompt, completion in ((1, 3, 5), (2, 5, 10)):
        usage = dict(answers[number].usage)
        assert usage.pop("compute_seconds") > 0
        assert usage == {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
        }
