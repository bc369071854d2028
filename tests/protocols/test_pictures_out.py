"""A task that answers with pictures, over the protocols: the file itself where that is wanted, else
base64.
"""

import io
import json
from base64 import b64decode, b64encode

import msgspec
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from modelmill import bundle
from modelmill.predictor import Predictor, write_golden
from modelmill.types import TensorSpec
from tests.helpers.bundles import a_manifest
from tests.helpers.gateways import InMemoryApi, LiveApi, a_route
from tests.helpers.pictures import png
from tests.helpers.v2 import infer, refused, tensor
from tests.helpers.workers import answering_with

AXES = ["batch", "height", "width", 1]
SPECS = {
    "inputs": [
        TensorSpec(name="image", datatype="UINT8", shape=[-1, -1, -1, 1])
    ],
    "outputs": [
        TensorSpec(name="repaired", datatype="FP32", shape=[-1, -1, -1, 1])
    ],
}


def negative_bundle(target):
    """A sealed bundle of image-to-image whose network answers the negative of luminance."""
    from onnx import TensorProto, helper, numpy_helper

    draft = target.with_name("draft")
    draft.mkdir()
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["white", "floats"], ["levels"]),
        helper.make_node("Div", ["levels", "white"], ["repaired"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, AXES)
    repaired = helper.make_tensor_value_info(
        "repaired", TensorProto.FLOAT, AXES
    )
    white = numpy_helper.from_array(np.array(255, np.float32), "white")
    body = helper.make_graph(nodes, "negative", [image], [repaired], [white])
    graph = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (draft / "model.onnx").write_bytes(graph.SerializeToString())
    how = {"repair": "denoise", "color": "grey", "multiple": 2}
    manifest = a_manifest(
        task="image-to-image", labels=[], preprocessing=how, **SPECS
    )
    inputs = [png(np.full((5, 7), 51))]
    write_golden(draft, inputs, Predictor(draft, manifest).predict(inputs))
    bundle.seal(draft, manifest, target)
    return target


def pixels_of(data):
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


PICTURE = np.random.default_rng(0).integers(0, 256, (30, 41), np.uint8)
FILE = png(PICTURE)
NEGATIVE = 255 - PICTURE


def route(**changed):
    return a_route(
        "repair", task="image-to-image", output="image", **SPECS, **changed
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return answering_with(
        negative_bundle(tmp_path_factory.mktemp("negative") / "bundle")
    )


@pytest.fixture(scope="module")
def api(tmp_path_factory, served):
    api = InMemoryApi()
    worker = api.worker(tmp_path_factory.mktemp("w") / "w", served)
    api.update(route(sockets=[worker.path]))
    yield api
    api.runner.run(worker.stop())
    api.close()


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "image/png", "image/*", "application/json, image/png;q=0.5"],
)
def test_the_answer_is_the_picture_itself(api, accept):
    reply = api.ask(
        "POST", "/models/repair", FILE, {"accept": accept} if accept else {}
    )
    assert (reply.status, reply.headers[b"content-type"]) == (200, b"image/png")
    assert np.array_equal(pixels_of(reply.body), NEGATIVE)


def test_a_caller_who_takes_only_json_gets_base64(api):
    reply = api.ask(
        "POST", "/models/repair", FILE, {"accept": "application/json"}
    )
    assert reply.headers[b"content-type"] == b"application/json"
    assert np.array_equal(pixels_of(b64decode(reply.json["image"])), NEGATIVE)


def test_several_pictures_are_answered_in_a_list(api):
    body = {
        "inputs": [
            b64encode(FILE).decode(),
            b64encode(png(PICTURE[:9])).decode(),
        ]
    }
    found = api.ask(
        "POST",
        "/models/repair",
        msgspec.json.encode(body),
        {"content-type": "application/json"},
    ).json
    assert [pixels_of(b64decode(one["image"])).shape for one in found] == [
        (30, 41),
        (9, 41),
    ]


def test_a_caller_who_accepts_neither_gets_an_error_that_says_so(api):
    reply = api.ask("POST", "/models/repair", FILE, {"accept": "text/html"})
    assert (reply.status, reply.error) == (
        400,
        "the answer is image/png or application/json, but the request accepts only text/html",
    )


def test_v2_answers_raw_input_with_base64(api):
    def asked(*files):
        raw = tensor(
            [b64encode(file).decode() for file in files],
            [len(files)],
            "BYTES",
            "image",
        )
        return infer(api, "repair", raw, outputs=[{"name": "answer"}])

    (output,) = asked(FILE, FILE).json["outputs"]
    assert (output["name"], output["shape"]) == ("answer", [2])
    assert all(
        np.array_equal(
            pixels_of(b64decode(json.loads(text)["image"])), NEGATIVE
        )
        for text in output["data"]
    )
    refused(
        asked(FILE, png(PICTURE[:9])),
        "in its own size: send those of one size together",
    )


def test_v2_answers_tensors_with_values(api):
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, 30, 41, 1],
        "data": PICTURE.ravel().tolist(),
    }
    reply = api.ask(
        "POST",
        "/v2/models/repair/infer",
        msgspec.json.encode({"inputs": [tensor]}),
    )
    (output,) = reply.json["outputs"]
    assert (output["name"], output["shape"]) == ("repaired", [1, 30, 41, 1])
    assert np.array_equal(
        np.rint(np.array(output["data"]) * 255).reshape(30, 41), NEGATIVE
    )


def test_the_published_client_gets_a_picture(tmp_path, served):
    async def routes(api):
        worker = await api.worker(tmp_path / "w", served)
        return [route(sockets=[worker.path])]

    live = LiveApi(routes)
    try:
        client = InferenceClient(
            model=f"{live.url}/models/repair", token="user-key", timeout=20
        )
        found = client.image_to_image(FILE)
    finally:
        live.close()
    assert np.array_equal(np.asarray(found), NEGATIVE)
