"""A worker answers every call of a batch, whatever its batch-mates are."""

import gc
import os
import signal
import socket
import threading
import time

import msgspec
import numpy as np
import pytest

from modelmill import predictor
from modelmill.serve.tensors import elements_of, tensor_of, texts_of
from modelmill.serve.wire import HEAD, Call, Tensor, frame, read_batch
from modelmill.serve.worker import Server, Worker, main
from modelmill.types import WorkerSpec
from tests.helpers.bundles import picture_bundle
from tests.helpers.pictures import png
from tests.helpers.text_bundles import text_bundle, writing_bundle


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return predictor.load(
        picture_bundle(tmp_path_factory.mktemp("pictures") / "b")
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return predictor.load(text_bundle(tmp_path_factory.mktemp("texts") / "b"))


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request):
    return request.param


def answered(model, threads=1):
    """What a worker with this model answers to calls."""
    return lambda calls: Worker(model, threads).answer(calls).answers


def grey(value):
    return png(np.full((2, 2), value))


def pixels(*values, side=2):
    array = np.stack(
        [np.full((side, side, 1), value, np.uint8) for value in values]
    )
    return [Tensor("image", "UINT8", list(array.shape), array.tobytes())]


def ids(*rows):
    array = np.array(rows, np.int64)
    return [Tensor("ids", "INT64", list(array.shape), array.tobytes())]


def best(answer):
    assert answer.code == "", answer.message
    return msgspec.json.decode(answer.data)[0]


def scores(answer):
    assert answer.code == "", answer.message
    (tensor,) = answer.tensors
    assert (tensor.name, tensor.datatype) == ("scores", "FP32")
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


def test_a_batch_is_answered_in_its_order(pictures, threads):
    values = [0, 51, 102, 204, 255]
    answers = answered(pictures, threads)(
        [Call(n, grey(v), [], {"top_k": 2}) for n, v in enumerate(values)]
    )
    assert [answer.id for answer in answers] == [0, 1, 2, 3, 4]
    bright = [
        {e["label"]: e["score"] for e in msgspec.json.decode(a.data)}["bright"]
        for a in answers
    ]
    assert bright == pytest.approx([value / 255 for value in values], abs=1e-5)


def test_a_bad_item_does_not_spoil_its_batch_mates(pictures, threads):
    answers = answered(pictures, threads)(
        [
            Call(1, grey(0), [], {}),
            Call(2, b"no picture", [], {}),
            Call(3, b"", [], {}),
            Call(4, grey(255), [], {}),
            Call(5, grey(255), [], {"top_k": -1}),
            Call(6, None, [Tensor("image", "UINT8", [3, 3], b"x")], {}),
        ]
    )
    assert [answer.code for answer in answers[:5]] == [
        "",
        "invalid_input",
        "invalid_input",
        "",
        "invalid_input",
    ]
    assert answers[5].code != ""
    assert (best(answers[0])["label"], best(answers[3])["label"]) == (
        "dark",
        "bright",
    )


def test_tensors_and_task_input_share_a_batch(pictures, threads):
    runs = []
    run = pictures.runs[""]

    def counting(arrays):
        runs.append(len(arrays["image"]))
        return run(arrays)

    pictures.runs[""] = counting
    try:
        answers = answered(pictures, threads)(
            [
                Call(1, grey(255), [], {}),
                Call(2, None, pixels(0, 51, 255), {}),
                Call(3, grey(0), [], {}),
            ]
        )
    finally:
        pictures.runs[""] = run
    assert runs == [5]
    assert best(answers[0])["label"] == "bright"
    np.testing.assert_allclose(scores(answers[1])[:, 1], [0, 0.2, 1], atol=1e-5)
    assert best(answers[2])["label"] == "dark"


def test_calls_of_several_shapes_are_answered(pictures, threads):
    answers = answered(pictures, threads)(
        [
            Call(n, None, pixels(value, side=side), {})
            for n, (value, side) in enumerate(
                [(0, 2), (51, 3), (255, 2), (102, 3)]
            )
        ]
    )
    np.testing.assert_allclose(
        [scores(answer)[0, 1] for answer in answers],
        [0, 0.2, 1, 0.4],
        atol=1e-5,
    )


def test_an_input_that_the_model_fails_on_fails_alone(texts, threads):
    good = [1, 2, 3, 0]
    answers = answered(texts, threads)(
        [
            Call(1, b"good film", [], {}),
            Call(2, None, ids([1, 999, 0, 0]), {}),
            Call(3, None, ids(good, good), {}),
            Call(4, "电影".encode(), [], {}),
        ]
    )
    assert [answer.code for answer in answers] == ["", "model_failed", "", ""]
    assert scores(answers[2]).shape == (2, 2)


def test_a_text_that_is_no_utf8_is_refused(texts, threads):
    bad, good = answered(texts, threads)(
        [Call(1, b"\xff\xfe", [], {}), Call(2, b"good", [], {})]
    )
    assert (bad.code, bad.message) == (
        "invalid_input",
        "the text is not valid UTF-8",
    )
    assert good.code == ""


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (
            Tensor("image", "UINT8", [1, 2, 2, 1], b"xx"),
            "do not fill the shape",
        ),
        (
            Tensor("image", "UINT8", [2, 2, 2, 1], b"1234"),
            "do not fill the shape",
        ),
        (Tensor("image", "NOTHING", [1], b"x"), "unknown datatype 'NOTHING'"),
        (Tensor("pixels", "BYTES", [2], b"\1\0\0\0a"), "do not fill the shape"),
        (
            Tensor("image", "BYTES", [1], b"\5\0\0\0a"),
            "longer than what was sent",
        ),
        (Tensor("image", "BYTES", [0], b""), "the batch is empty"),
    ],
)
def test_tensors_that_can_not_be_read_are_refused_in_words(
    pictures, tensor, says
):
    (answer,) = answered(pictures)([Call(1, None, [tensor], {})])
    assert answer.code == "invalid_input"
    assert says in answer.message


def test_an_input_that_the_model_does_not_have_is_answered(pictures):
    (answer,) = answered(pictures)(
        [Call(1, None, [Tensor("other", "UINT8", [1, 2, 2, 1], b"1234")], {})]
    )
    assert answer.code
    assert answer.message


def test_a_call_without_anything_is_answered(pictures):
    empty, good = answered(pictures)(
        [Call(1, None, [], {}), Call(2, grey(0), [], {})]
    )
    assert empty.code == "invalid_input"
    assert good.code == ""


# ---- raw task inputs as BYTES, and answers as JSON


def raw(*inputs, name="image"):
    return [texts_of(name, inputs)]


def test_raw_inputs_as_bytes_are_decoded_row_by_row_and_answered_as_tensors(
    pictures, threads
):
    (answer,) = answered(pictures, threads)(
        [Call(1, None, raw(grey(0), grey(255), grey(51)), {})]
    )
    np.testing.assert_allclose(scores(answer)[:, 1], [0, 1, 0.2], atol=1e-5)


def test_the_tasks_answer_can_be_asked_for(pictures, threads):
    answers = answered(pictures, threads)(
        [
            Call(1, None, raw(grey(0), grey(255)), {"top_k": 1}, ["answer"]),
            Call(2, None, raw(grey(255)), {}, ["answer", "scores"]),
        ]
    )
    (tensor,) = answers[0].tensors
    assert (tensor.name, tensor.datatype, tensor.shape) == (
        "answer",
        "BYTES",
        [2],
    )
    rows = [msgspec.json.decode(element) for element in elements_of(tensor)]
    assert [[entry["label"] for entry in row] for row in rows] == [
        ["dark"],
        ["bright"],
    ]
    assert [tensor.name for tensor in answers[1].tensors] == [
        "answer",
        "scores",
    ]


def test_texts_as_bytes_are_answered_as_texts_alone(texts):
    batch = answered(texts)(
        [Call(1, None, raw(b"good film", b"bad", name="text"), {}, ["answer"])]
    )
    alone = answered(texts)(
        [Call(1, b"good film", [], {}), Call(2, b"bad", [], {})]
    )
    rows = [
        msgspec.json.decode(element)
        for element in elements_of(batch[0].tensors[0])
    ]
    assert rows == [msgspec.json.decode(answer.data) for answer in alone]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            Call(1, None, pixels(0), {}, ["answer"]),
            "needs raw input: send 'image' as BYTES",
        ),
        (Call(1, None, raw(b"no picture"), {}, ["answer"]), ""),
        (
            Call(1, None, pixels(0), {}, ["heat"]),
            "unknown output 'heat'; there are: scores",
        ),
        (Call(1, None, raw(grey(0)), {"top_k": -1}, ["answer"]), ""),
    ],
)
def test_an_answer_that_can_not_be_given_is_refused_in_words(
    pictures, call, says
):
    good, bad = answered(pictures)([Call(0, grey(0), [], {}), call])
    assert (good.code, bad.code) == ("", "invalid_input")
    assert says in bad.message


def test_only_the_outputs_that_are_wanted_are_sent(pictures):
    with_all, with_one = answered(pictures)(
        [Call(1, None, pixels(0), {}), Call(2, None, pixels(0), {}, ["scores"])]
    )
    assert (
        [tensor.name for tensor in with_all.tensors]
        == [tensor.name for tensor in with_one.tensors]
        == ["scores"]
    )


# ---- the engine


@pytest.fixture
def engine(pictures, monkeypatch):
    """Lets the engine do what a test says."""
    return lambda run: monkeypatch.setitem(pictures.runs, "", run)


def test_an_engine_that_fails_on_one_input_refuses_that_alone(pictures, engine):
    def run(arrays):
        if (arrays["image"] == 7).any():
            raise RuntimeError("seven")
        return {"scores": arrays["image"][:, 0, 0].astype(np.float32)}

    engine(run)
    answers = answered(pictures)(
        [Call(n, None, pixels(n), {}) for n in range(10)]
    )
    assert [answer.code for answer in answers] == [""] * 7 + [
        "model_failed"
    ] + [""] * 2
    assert [scores(answer)[0, 0] for answer in answers if not answer.code] == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        8,
        9,
    ]


def test_a_model_whose_outputs_have_no_rows_is_run_call_by_call(
    pictures, engine
):
    engine(
        lambda arrays: {"scores": np.array(arrays["image"].sum(), np.float32)}
    )
    answers = answered(pictures)(
        [Call(n, None, pixels(n), {}) for n in range(3)]
    )
    assert [scores(answer).item() for answer in answers] == [0, 4, 8]


def test_inputs_of_unequal_rows_do_not_shift_those_of_others(pictures, engine):
    engine(
        lambda arrays: {
            "scores": np.stack([arrays["a"], arrays["b"]], 1)[
                : len(arrays["a"])
            ]
        }
    )

    def call(number, a, b):
        pair = [("a", np.array(a, np.float32)), ("b", np.array(b, np.float32))]
        return Call(number, None, [tensor_of(*one) for one in pair], {})

    uneven, good, other = answered(pictures)(
        [call(1, [1], [1, 2]), call(2, [5], [5]), call(3, [8, 9], [8])]
    )
    assert scores(good).tolist() == [[5, 5]]
    assert uneven.code
    assert other.code


def test_many_rows_are_run_a_part_at_a_time(pictures, engine):
    sizes = []

    def run(arrays):
        sizes.append(len(arrays["image"]))
        return {"scores": arrays["image"][:, 0, 0].astype(np.float32)}

    engine(run)
    (answer,) = answered(pictures)(
        [Call(1, None, pixels(*[n % 256 for n in range(600)]), {})]
    )
    assert sizes == [256, 256, 88]
    assert scores(answer)[:, 0].tolist() == [n % 256 for n in range(600)]


def test_a_batch_says_how_many_rows_it_had_and_what_they_cost(pictures):
    batch = Worker(pictures, 1).answer(
        [
            Call(1, grey(0), [], {}),
            Call(2, None, pixels(1, 2), {}),
            Call(3, b"", [], {}),
        ]
    )
    assert batch.rows == 3
    assert (
        min(batch.decode_seconds, batch.run_seconds, batch.encode_seconds) > 0
    )


def test_every_group_of_a_batch_counts_as_run_time(pictures, engine):
    def run(arrays):
        time.sleep(0.02)
        return {"scores": arrays["image"][:, 0, 0].astype(np.float32)}

    engine(run)
    batch = Worker(pictures, 1).answer(
        [
            Call(1, None, pixels(1, side=2), {}),
            Call(2, None, pixels(1, side=3), {}),
        ]
    )
    assert batch.run_seconds >= 0.04


# ---- the socket


def receive(link, size):
    data = b""
    while len(data) < size:
        part = link.recv(size - len(data))
        assert part
        data += part
    return data


def ask(link, calls):
    link.sendall(frame(calls))
    return read_batch(
        receive(link, int.from_bytes(receive(link, HEAD), "little"))
    ).answers


@pytest.fixture
def server(pictures, tmp_path):
    server = Server(Worker(pictures, 1), str(tmp_path / "w.sock"))
    thread = threading.Thread(target=server.run)
    thread.start()
    server.thread = thread
    yield server
    server.stopping.set()
    thread.join(10)


def connect(tmp_path):
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(10)
    link.connect(str(tmp_path / "w.sock"))
    return link


def test_it_listens_and_answers_frame_after_frame(server, tmp_path):
    with connect(tmp_path) as one, connect(tmp_path) as two:
        for link in (one, two, one):
            assert [
                best(answer)["label"]
                for answer in ask(link, [Call(1, grey(0), [], {})])
            ] == ["dark"]


def test_two_batches_of_one_gateway_are_worked_on_at_a_time(
    server, tmp_path, monkeypatch
):
    both = threading.Barrier(2, timeout=10)
    decode = server.worker._decode

    def meeting(call):
        both.wait()  # passed only when another batch is being decoded as well
        return decode(call)

    monkeypatch.setattr(server.worker, "_decode", meeting)
    with connect(tmp_path) as link:
        link.sendall(
            frame([Call(1, grey(0), [], {})])
            + frame([Call(2, grey(0), [], {})])
        )
        got = [
            read_batch(
                receive(link, int.from_bytes(receive(link, HEAD), "little"))
            )
            for _ in range(2)
        ]
    assert sorted(batch.answers[0].id for batch in got) == [1, 2]
    assert [answer.code for batch in got for answer in batch.answers] == [
        "",
        "",
    ]


def test_a_batch_that_can_not_be_answered_ends_the_link_and_not_the_worker(
    server, tmp_path, monkeypatch
):
    def fail(calls):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(server.worker, "answer", fail)
    with connect(tmp_path) as link:
        link.sendall(frame([Call(1, grey(0), [], {})]))
        assert link.recv(1) == b""
    monkeypatch.undo()
    with connect(tmp_path) as good:
        assert ask(good, [Call(1, grey(0), [], {})])[0].code == ""


def test_garbage_ends_the_link_and_not_the_worker(server, tmp_path):
    with connect(tmp_path) as bad:
        bad.sendall((4).to_bytes(HEAD, "little") + b"\xff" * 4)
        assert bad.recv(1) == b""
    with connect(tmp_path) as cut:
        cut.sendall((400).to_bytes(HEAD, "little") + b"\xff" * 4)
    with connect(tmp_path) as good:
        assert ask(good, [Call(1, grey(0), [], {})])[0].code == ""


def test_after_sigterm_it_stays_until_the_gateway_has_disconnected(
    server, tmp_path
):
    with connect(tmp_path) as link:
        ask(link, [Call(1, grey(0), [], {})])
        server.stopping.set()
        server.thread.join(0.6)
        assert server.thread.is_alive()
        assert not (tmp_path / "w.sock").exists()
        assert ask(link, [Call(1, grey(0), [], {})])[0].code == ""
    server.thread.join(5)
    assert not server.thread.is_alive()


class Panic(BaseException):
    """As a library written in Rust raises it."""


@pytest.mark.parametrize("step", ["decode", "infer", "encode"])
def test_a_panic_fails_its_call_and_no_thread_ends(step, pictures, monkeypatch):
    def panics(*_, **__):
        raise Panic

    monkeypatch.setattr(pictures, step, panics)
    answer = Worker(pictures, 1).answer([Call(1, grey(7), [], {})]).answers[0]
    assert answer.code == "model_failed"


def test_a_wish_to_end_is_not_held_up(pictures, monkeypatch):
    def exits(*_, **__):
        raise SystemExit

    monkeypatch.setattr(pictures, "decode", exits)
    with pytest.raises(SystemExit):
        Worker(pictures, 1).answer([Call(1, grey(7), [], {})])


@pytest.fixture
def undisturbed():
    """What the entry of a worker changes of its process is put back."""
    thresholds, ask = gc.get_threshold(), signal.getsignal(signal.SIGTERM)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    signal.signal(signal.SIGTERM, ask)


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize(
    ("make", "batch", "most", "why"),
    [
        (picture_bundle, 1, 1, "the deployment is set to a batch of 1"),
        (picture_bundle, 2, 2, ""),
        (picture_bundle, 0, 64, ""),
        (writing_bundle, 1, 1, "the deployment is set to a batch of 1"),
        (writing_bundle, 5, 5, ""),
        (writing_bundle, 0, 16, ""),
    ],
)
def test_a_worker_says_how_many_calls_share_a_batch(
    make, batch, most, why, tmp_path
):
    said = []
    spec = WorkerSpec(
        deployment="eyes",
        model="eyes",
        version=1,
        bundle=str(make(tmp_path / "bundle")),
        socket=str(tmp_path / "w.sock"),
        threads=1,
        batch=batch,
    )

    def report(message):
        said.append(message)
        if message.get(
            "ready"
        ):  # else nothing waits for the signal: it would end pytest
            os.kill(os.getpid(), signal.SIGTERM)

    assert main(msgspec.json.encode(spec), report) == 0, said
    assert 1 <= said[0]["batch"] <= most
    assert said[0]["alone"] == why
