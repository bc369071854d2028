"""KServe v1: instances and columns, texts, pictures and tensors, in and out."""

import base64
import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.engines.base import NUMPY
from modelmill.serve.wire import Answer, Tensor
from modelmill.types import TensorSpec
from tests.helpers.bundles import picture_bundle
from tests.helpers.gateways import InMemoryApi, a_route
from tests.helpers.pictures import png
from tests.helpers.workers import answering_with

B64 = base64.b64encode(png(np.full((2, 2), 204))).decode()
PATH = "/v1/models/{}:predict"


class Mirror:
    """Answers tensors with themselves and texts with a label; notes what it gets."""

    def __init__(self):
        self.calls = []

    async def __call__(self, calls):
        self.calls += calls
        return [
            Answer(call.id, data=b'[{"label":"good","score":1.0}]')
            if call.data is not None
            else Answer(
                call.id,
                tensors=[
                    Tensor(f"{t.name}_out", t.datatype, t.shape, t.data)
                    for t in call.tensors
                ],
            )
            for call in calls
        ]


def specs(*given, suffix=""):
    return [
        TensorSpec(name=name + suffix, datatype=datatype, shape=shape)
        for name, datatype, shape in given
    ]


def tensors(name, *given, **changed):
    outputs = specs(*given, suffix="_out")
    return a_route(
        name,
        kind="tensor",
        task="",
        inputs=specs(*given),
        outputs=outputs,
        **changed,
    )


@pytest.fixture(scope="module")
def mirror():
    return Mirror()


@pytest.fixture(scope="module")
def api(tmp_path_factory, mirror):
    folder = tmp_path_factory.mktemp("kserve")
    api = InMemoryApi()
    model = answering_with(picture_bundle(folder / "bundle"))
    real, mirrors = (
        api.worker(folder / "r", model),
        api.worker(folder / "m", mirror),
    )
    there = {"sockets": [mirrors.path]}
    api.update(
        a_route("spots", sockets=[real.path]),
        a_route("words", kind="text", task="text-classification", **there),
        tensors(
            "brightness",
            ("image", "UINT8", [-1, -1, -1, 1]),
            sockets=[real.path],
        ),
        tensors("two", ("a", "FP32", [-1, 2]), ("b", "INT64", [-1]), **there),
        tensors("scalar", ("x", "FP64", [-1]), **there),
        tensors("fixed", ("x", "FP32", [1, 2]), **there),
        tensors("odd", ("x", "BYTES", [-1, 1]), **there),
        tensors("rankless", ("x", "FP32", []), **there),
        *(
            tensors(f"of-{kind}", ("x", kind, [-1, 2]), **there)
            for kind in NUMPY
        ),
        a_route("loading", ready=False),
    )
    yield api
    for worker in (real, mirrors):
        api.runner.run(worker.stop())
    api.close()


def predict(api, name, document, **options):
    body = (
        document
        if isinstance(document, bytes)
        else json.dumps(document).encode()
    )
    return api.ask("POST", PATH.format(name), body, **options)


def refused(reply, *says, status=400):
    assert reply.status == status, reply
    assert reply.json["error"].keys() == {"message", "type", "param", "code"}
    for words in says:
        assert words in reply.error
    assert len(reply.error) < 500
    return True


@pytest.mark.parametrize(
    "instance", [B64, {"b64": B64}, {"image": {"b64": B64}}, {"image": B64}]
)
def test_a_picture_comes_in_every_form_of_tensorflow_serving(api, instance):
    reply = predict(api, "spots", {"instances": [instance, B64]})
    assert reply.status == 200
    for prediction in reply.json["predictions"]:
        assert [entry["label"] for entry in prediction] == ["bright", "dark"]


@pytest.mark.parametrize(
    "instances", [["fine"], ["fine", {"text": "dull"}], ["x"] * 128]
)
def test_texts_are_answered_in_their_order(api, mirror, instances):
    mirror.calls.clear()
    reply = predict(
        api,
        "words",
        {"instances": instances, "signature_name": "serving_default"},
    )
    assert reply.json == {
        "predictions": [[{"label": "good", "score": 1.0}]] * len(instances)
    }
    assert len(mirror.calls) == len(instances)


def test_parameters_are_passed_on(api, mirror):
    mirror.calls.clear()
    assert (
        predict(
            api, "words", {"instances": ["fine"], "parameters": {"top_k": 1}}
        ).status
        == 200
    )
    assert mirror.calls[0].parameters == {"top_k": 1}
    assert (
        len(
            predict(
                api, "spots", {"instances": [B64], "parameters": {"top_k": 1}}
            ).json["predictions"][0]
        )
        == 1
    )
    assert refused(
        predict(api, "spots", {"instances": [B64], "parameters": {"top": 1}}),
        "did you mean 'top_k'?",
    )


@pytest.mark.parametrize(
    "inputs", [["fine", "dull"], {"text": ["fine", "dull"]}]
)
def test_columns_of_texts_are_answered_with_outputs(api, inputs):
    reply = predict(api, "words", {"inputs": inputs})
    assert reply.json == {"outputs": [[{"label": "good", "score": 1.0}]] * 2}


def test_the_instance_that_is_refused_is_named(api):
    broken = base64.b64encode(b"no picture").decode()
    assert refused(
        predict(api, "spots", {"instances": [B64, broken]}), "input 1: "
    )
    assert refused(
        predict(api, "spots", {"instances": [B64, 5]}),
        "instance 1 holds an image as base64",
    )


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"\xff",
        [],
        {},
        {"instances": []},
        {"instances": None},
        {"instances": "fine"},
        {"instances": {"text": "fine"}},
        {"instances": ["fine"], "inputs": ["fine"]},
        {"instances": ["x"] * 129},
        {"instances": [5]},
        {"instances": [None]},
        {"instances": [["fine"]]},
        {"instances": [{"b64": "eA=="}]},
        {"instances": [{"words": "fine"}]},
        {"instances": ["fine"], "parameters": "top_k"},
        {"inputs": {"words": ["fine"]}},
        b'{"instances": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_what_a_model_of_texts_does_not_take_is_refused(api, document):
    assert refused(predict(api, "words", document))


# ---- models without a task


def test_rows_of_one_input_are_lists(api, mirror):
    mirror.calls.clear()
    reply = predict(api, "of-FP32", {"instances": [[1, 2], [3.5, 4]]})
    assert reply.json == {"predictions": [[1, 2], [3.5, 4]]}
    assert len(mirror.calls) == 1
    assert predict(api, "scalar", {"instances": [1, 2.5, 3]}).json == {
        "predictions": [1, 2.5, 3]
    }


def test_rows_of_several_inputs_are_objects(api):
    reply = predict(
        api,
        "two",
        {"instances": [{"a": [1, 2], "b": 7}, {"b": 2**62 + 1, "a": [3, 4]}]},
    )
    assert reply.json == {
        "predictions": [
            {"a_out": [1, 2], "b_out": 7},
            {"a_out": [3, 4], "b_out": 2**62 + 1},
        ]
    }
    assert predict(api, "scalar", {"instances": [{"x": 1}]}).json == {
        "predictions": [1]
    }


def test_columns_are_answered_with_columns(api):
    reply = predict(
        api, "two", {"inputs": {"a": [[1, 2], [3, 4]], "b": [7, 8]}}
    )
    assert reply.json == {
        "outputs": {"a_out": [[1, 2], [3, 4]], "b_out": [7, 8]}
    }
    for inputs in ([[1, 2]], {"x": [[1, 2]]}):
        assert predict(api, "of-FP32", {"inputs": inputs}).json == {
            "outputs": [[1, 2]]
        }


def test_a_real_model_answers_pixels(api):
    picture = [[[204], [204]], [[204], [204]]]
    (scores,) = predict(api, "brightness", {"instances": [picture]}).json[
        "predictions"
    ]
    assert scores == pytest.approx([0.2, 0.8], abs=0.01)


@pytest.mark.parametrize("kind", sorted(NUMPY))
def test_every_datatype_comes_back_as_it_went(api, kind):
    dtype = np.dtype(NUMPY[kind])
    values = [True, False] if dtype.kind == "b" else [-1.5, 0.25]
    if dtype.kind in "iu":
        values = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    assert predict(api, f"of-{kind}", {"instances": [values, values]}).json == {
        "predictions": [values, values]
    }


def test_a_model_with_a_fixed_number_of_rows_takes_that_many(api):
    assert predict(api, "fixed", {"instances": [[1, 2]]}).status == 200
    assert refused(
        predict(api, "fixed", {"instances": [[1, 2], [3, 4]]}),
        "wants the shape [1, 2], given: [2, 2]",
    )


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("of-FP32", {"instances": [[1, 2, 3]]}),
        ("of-FP32", {"instances": [[1, 2], [3]]}),
        ("of-FP32", {"instances": [1, 2]}),
        ("of-FP32", {"instances": [[[1, 2]]]}),
        ("of-FP32", {"instances": [["1", "2"]]}),
        ("of-FP32", {"instances": [[1, None]]}),
        ("of-FP32", {"instances": [[1, True]]}),
        ("of-FP32", {"instances": [[1, 1e300]]}),
        ("of-FP32", {"instances": [[1, 10**400]]}),
        ("of-FP16", {"instances": [[1, 70000]]}),
        ("of-INT8", {"instances": [[1, 128]]}),
        ("of-UINT8", {"instances": [[1, -1]]}),
        ("of-INT64", {"instances": [[1, 2**63]]}),
        ("of-UINT64", {"instances": [[1, 2**64]]}),
        ("of-INT32", {"instances": [[1, 2.5]]}),
        ("of-INT32", {"instances": [[1, True]]}),
        ("of-BOOL", {"instances": [[0, 1]]}),
        ("of-FP32", {"instances": [{"y": [1, 2]}]}),
        ("of-FP32", {"instances": [{"x": [1, 2]}, [1, 2]]}),
        ("of-FP32", {"instances": [{}]}),
        ("of-FP32", {"instances": []}),
        ("of-FP32", {"instances": "x"}),
        ("of-FP32", {"instances": [[1, 2]] * 4097}),
        ("of-FP32", {"inputs": [[1, 2]] * 4097}),
        ("of-FP32", {"instances": [[1, 2]], "parameters": []}),
        ("of-FP32", {"inputs": []}),
        ("of-FP32", {"inputs": {}}),
        ("of-FP32", {"inputs": None}),
        ("of-FP32", b'{"instances": [[1, NaN]]}'),
        ("two", {"instances": [[1, 2]]}),
        ("two", {"instances": [{"a": [1, 2]}]}),
        ("two", {"inputs": [[1, 2]]}),
        ("two", {"inputs": {"a": [[1, 2]], "b": [7, 8]}}),
        ("odd", {"instances": [["x"]]}),
        ("rankless", {"instances": [1]}),
        ("rankless", {"inputs": 1}),
    ],
)
def test_what_a_model_of_tensors_does_not_take_is_refused(api, name, document):
    assert refused(predict(api, name, document))


def test_numbers_that_json_lacks_come_back_as_null(api, tmp_path):
    async def nan(calls):
        data = np.array([[np.nan, np.inf]], np.float32).tobytes()
        return [
            Answer(call.id, tensors=[Tensor("x_out", "FP32", [1, 2], data)])
            for call in calls
        ]

    kept, worker = api.gateway._snapshot, api.worker(tmp_path / "w", nan)
    api.update(tensors("nan", ("x", "FP32", [-1, 2]), sockets=[worker.path]))
    reply = predict(api, "nan", {"instances": [[1, 2]]})
    api.gateway.update(kept)
    api.runner.run(worker.stop())
    assert reply.json == {"predictions": [[None, None]]}


def test_an_output_without_rows_is_a_failure_of_the_model_and_has_columns(
    api, tmp_path
):
    async def total(calls):
        return [
            Answer(
                call.id,
                tensors=[Tensor("sum", "FP32", [], np.float32(3).tobytes())],
            )
            for call in calls
        ]

    kept, worker = api.gateway._snapshot, api.worker(tmp_path / "w", total)
    api.update(tensors("sum", ("x", "FP32", [-1, 2]), sockets=[worker.path]))
    rows, columns = (
        predict(api, "sum", {key: [[1, 2]]}) for key in ("instances", "inputs")
    )
    api.gateway.update(kept)
    api.runner.run(worker.stop())
    assert refused(rows, "ask with inputs", status=500)
    assert columns.json == {"outputs": 3}


# ---- around it

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.just({"b64": B64}),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["x", "a", "b", "text", "b64"]), inner
        )
    ),
    max_leaves=12,
)


@given(
    name=st.sampled_from(
        [
            "spots",
            "words",
            "of-FP32",
            "of-INT8",
            "two",
            "scalar",
            "odd",
            "rankless",
        ]
    ),
    document=st.dictionaries(
        st.sampled_from(["instances", "inputs", "parameters"]), anything
    )
    | anything,
)
@settings(max_examples=400, deadline=None)
def test_whatever_comes_is_answered_or_refused_in_shape(api, name, document):
    reply = predict(api, name, document)
    assert reply.status == 200 or refused(reply)


def test_there_is_no_explainer(api):
    assert refused(
        api.ask("POST", "/v1/models/spots:explain", b"{}"),
        "no explainer",
        status=501,
    )
    assert refused(
        api.ask("POST", "/v1/models/absent:explain", b"{}"),
        "unknown model 'absent'",
        status=404,
    )


@pytest.mark.parametrize(
    "name", ["absent", "org/absent", ":predict", "spots:predict"]
)
def test_a_model_that_does_not_exist_is_said_so(api, name):
    assert refused(
        predict(api, name, {"instances": ["x"]}),
        f"unknown model '{name}'",
        status=404,
    )


def test_a_version_can_be_pinned(api):
    body = msgspec.json.encode({"instances": [B64]})
    for version, status in (("1", 200), ("9", 404)):
        assert (
            api.ask(
                "POST",
                PATH.format("spots"),
                body,
                {"x-modelmill-version": version},
            ).status
            == status
        )


def test_a_model_that_loads_says_when_to_come_back(api):
    reply = predict(api, "loading", {"instances": [B64]})
    assert refused(reply, "is loading", status=503)
    assert reply.headers[b"retry-after"] == b"1"


def test_the_verb_is_post(api):
    reply = api.ask("PUT", PATH.format("spots"))
    assert refused(reply, status=405)
    assert b"POST" in reply.headers[b"allow"]
