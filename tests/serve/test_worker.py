"""A worker answers every call of a batch, whatever its batch-mates are."""

import socket
import threading

import msgspec
import numpy as np
import pytest

from modelmill import predictor
from modelmill.serve.wire import HEAD, Call, Tensor, frame, read_answers
from modelmill.serve.worker import Server, Worker
from tests.making import picture_bundle, png, text_bundle


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return predictor.load(picture_bundle(tmp_path_factory.mktemp("pictures") / "b"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return predictor.load(text_bundle(tmp_path_factory.mktemp("texts") / "b"))


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request):
    return request.param


def grey(value):
    return png(np.full((2, 2), value))


def pixels(*values, side=2):
    array = np.stack([np.full((side, side, 1), value, np.uint8) for value in values])
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
    answers = Worker(pictures, threads).answer([Call(n, grey(v), [], {"top_k": 2}) for n, v in enumerate(values)])
    assert [answer.id for answer in answers] == [0, 1, 2, 3, 4]
    bright = [{e["label"]: e["score"] for e in msgspec.json.decode(a.data)}["bright"] for a in answers]
    assert bright == pytest.approx([value / 255 for value in values], abs=1e-5)
    assert all(answer.compute_seconds > 0 for answer in answers)


def test_a_bad_item_does_not_spoil_its_batch_mates(pictures, threads):
    answers = Worker(pictures, threads).answer(
        [
            Call(1, grey(0), [], {}),
            Call(2, b"no picture", [], {}),
            Call(3, b"", [], {}),
            Call(4, grey(255), [], {}),
            Call(5, grey(255), [], {"top_k": -1}),
            Call(6, None, [Tensor("image", "UINT8", [3, 3], b"x")], {}),
        ]
    )
    assert [answer.code for answer in answers[:5]] == ["", "invalid_input", "invalid_input", "", "invalid_input"]
    assert answers[5].code != ""
    assert (best(answers[0])["label"], best(answers[3])["label"]) == ("dark", "bright")


def test_tensors_and_task_input_share_a_batch(pictures, threads):
    runs = []
    session = pictures.session

    class Counting:
        def run(self, arrays):
            runs.append(len(arrays["image"]))
            return session.run(arrays)

    pictures.session = Counting()
    try:
        answers = Worker(pictures, threads).answer(
            [Call(1, grey(255), [], {}), Call(2, None, pixels(0, 51, 255), {}), Call(3, grey(0), [], {})]
        )
    finally:
        pictures.session = session
    assert runs == [5]
    assert best(answers[0])["label"] == "bright"
    np.testing.assert_allclose(scores(answers[1])[:, 1], [0, 0.2, 1], atol=1e-5)
    assert best(answers[2])["label"] == "dark"


def test_calls_of_several_shapes_are_answered(pictures, threads):
    answers = Worker(pictures, threads).answer(
        [
            Call(n, None, pixels(value, side=side), {})
            for n, (value, side) in enumerate([(0, 2), (51, 3), (255, 2), (102, 3)])
        ]
    )
    np.testing.assert_allclose([scores(answer)[0, 1] for answer in answers], [0, 0.2, 1, 0.4], atol=1e-5)


def test_an_input_that_the_model_fails_on_fails_alone(texts, threads):
    good = [1, 2, 3, 0]
    answers = Worker(texts, threads).answer(
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
    bad, good = Worker(texts, threads).answer([Call(1, b"\xff\xfe", [], {}), Call(2, b"good", [], {})])
    assert (bad.code, bad.message) == ("invalid_input", "the text is not valid UTF-8")
    assert good.code == ""


def test_tensors_that_can_not_be_read_are_answered(pictures):
    worker = Worker(pictures, 1)
    for tensor in (
        Tensor("image", "UINT8", [1, 2, 2, 1], b"xx"),
        Tensor("image", "NOTHING", [1], b"x"),
        Tensor("other", "UINT8", [1, 2, 2, 1], b"1234"),
    ):
        (answer,) = worker.answer([Call(1, None, [tensor], {})])
        assert answer.code
        assert answer.message


def test_a_call_without_anything_is_answered(pictures):
    empty, good = Worker(pictures, 1).answer([Call(1, None, [], {}), Call(2, grey(0), [], {})])
    assert empty.code
    assert good.code == ""


def receive(link, size):
    data = b""
    while len(data) < size:
        part = link.recv(size - len(data))
        assert part
        data += part
    return data


def ask(link, calls):
    link.sendall(frame(calls))
    return read_answers(receive(link, int.from_bytes(receive(link, HEAD), "little")))


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
            assert [best(answer)["label"] for answer in ask(link, [Call(1, grey(0), [], {})])] == ["dark"]


def test_garbage_ends_the_link_and_not_the_worker(server, tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)
    with connect(tmp_path) as bad:
        bad.sendall((4).to_bytes(HEAD, "little") + b"\xff" * 4)
        assert bad.recv(1) == b""
    with connect(tmp_path) as cut:
        cut.sendall((400).to_bytes(HEAD, "little") + b"\xff" * 4)
    with connect(tmp_path) as good:
        assert ask(good, [Call(1, grey(0), [], {})])[0].code == ""


def test_asked_to_go_it_stays_until_the_gateway_has_let_go(server, tmp_path):
    with connect(tmp_path) as link:
        ask(link, [Call(1, grey(0), [], {})])
        server.stopping.set()
        server.thread.join(0.6)
        assert server.thread.is_alive()
        assert not (tmp_path / "w.sock").exists()
        assert ask(link, [Call(1, grey(0), [], {})])[0].code == ""
    server.thread.join(5)
    assert not server.thread.is_alive()
