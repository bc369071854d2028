"""A model that makes pictures: the same seed gets the same pictures over every protocol, whatever
runs beside it.
"""

import base64
import io

import msgspec
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from modelmill import bundle, predictor
from modelmill.client import Client
from modelmill.predictor import Predictor, write_golden
from modelmill.serve.wire import Call
from modelmill.serve.worker import Worker
from modelmill.types import TensorSpec
from tests.helpers.bundles import a_manifest
from tests.helpers.gateways import InMemoryApi, LiveApi, a_route
from tests.helpers.workers import answering_with

JSON = {"content-type": "application/json"}
INPUTS = [TensorSpec(name="latent", datatype="FP32", shape=[-1, 12])]
OUTPUTS = [TensorSpec(name="image", datatype="FP32", shape=[-1, 2, 2, 3])]


def noise_graph():
    """Noise of 12 numbers as a picture of 2x2 pixels."""
    from onnx import TensorProto, helper, numpy_helper

    latent = helper.make_tensor_value_info(
        "latent", TensorProto.FLOAT, ["batch", 12]
    )
    image = helper.make_tensor_value_info(
        "image", TensorProto.FLOAT, ["batch", 2, 2, 3]
    )
    nodes = [
        helper.make_node("Sigmoid", ["latent"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["image"]),
    ]
    shape = numpy_helper.from_array(np.array([-1, 2, 2, 3], np.int64), "shape")
    body = helper.make_graph(nodes, "noise", [latent], [image], [shape])
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sealed bundle whose pictures are the noise itself."""
    target = tmp_path_factory.mktemp("noise") / "b"
    draft = target.with_name("draft")
    draft.mkdir()
    (draft / "model.onnx").write_bytes(noise_graph().SerializeToString())
    manifest = a_manifest(
        task="unconditional-image-generation",
        inputs=INPUTS,
        outputs=OUTPUTS,
        preprocessing={"height": 2, "width": 2, "color": "rgb", "latent": 12},
        labels=[],
    )
    write_golden(
        draft, ["1", "2"], Predictor(draft, manifest).predict(["1", "2"])
    )
    bundle.seal(draft, manifest, target)
    return target


def the_route(worker):
    return a_route(
        "noise",
        task="unconditional-image-generation",
        kind="seed",
        output="image",
        inputs=INPUTS,
        outputs=OUTPUTS,
        sockets=[worker.path],
    )


@pytest.fixture(scope="module")
def api(folder, tmp_path_factory):
    api = InMemoryApi()
    worker = api.worker(
        tmp_path_factory.mktemp("w") / "w", answering_with(folder)
    )
    api.update(the_route(worker), a_route("spots", sockets=[worker.path]))
    yield api
    api.runner.run(worker.stop())
    api.close()


@pytest.fixture(scope="module")
def seven(folder):
    """Three pictures of the seed 7, as PNG in base64."""
    (found,) = predictor.load(folder).predict(["7"], {"num_images": 3})
    assert len(set(found)) == 3
    return found


def post(api, path, document, **headers):
    return api.ask("POST", path, msgspec.json.encode(document), JSON | headers)


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": "7", "parameters": {"num_images": 3}},
        {"inputs": 7, "parameters": {"num_images": 3}},
        {"inputs": "", "parameters": {"num_images": 3, "seed": 7}},
        {"inputs": None, "parameters": {"num_images": 3, "seed": 7}},
        {"parameters": {"num_images": 3, "seed": 7}},
    ],
)
def test_hugging_face_takes_a_seed_or_nothing(api, seven, document):
    reply = post(api, "/models/noise", document)
    assert (reply.status, reply.json) == (200, seven)


def test_a_list_of_seeds_is_answered_one_list_each(api, seven):
    assert (
        post(api, "/models/noise", {"inputs": ["7", "7"]}).json
        == [seven[:1]] * 2
    )


@pytest.mark.parametrize(
    ("body", "headers"), [(b"", {}), (b"{}", JSON), (b"", {"accept": "*/*"})]
)
def test_nothing_at_all_is_a_picture_by_chance(api, body, headers):
    one, other = (
        api.ask("POST", "/models/noise", body, headers) for _ in range(2)
    )
    assert (one.status, len(one.json)) == (200, 1)
    assert one.json != other.json


@pytest.mark.parametrize(
    "accept", ["image/png", "image/*", "image/png;q=0.9, image/jpeg"]
)
def test_one_picture_comes_as_a_file_to_who_accepts_that(api, seven, accept):
    reply = post(api, "/models/noise", {"inputs": "7"}, accept=accept)
    assert (reply.status, reply.headers[b"content-type"]) == (200, b"image/png")
    assert reply.body == base64.b64decode(seven[0])


def test_several_pictures_are_no_file(api):
    for document in (
        {"inputs": "7", "parameters": {"num_images": 2}},
        {"inputs": ["7", "8"]},
        {"inputs": ["7"]},
    ):
        reply = post(api, "/models/noise", document, accept="image/png")
        assert reply.status == 400
        assert "accept application/json for a list" in reply.error
    assert (
        post(api, "/models/spots", {"inputs": "7"}, accept="image/png").status
        == 400
    )
    assert (
        "accepts only"
        in post(api, "/models/noise", {"inputs": "7"}, accept="text/html").error
    )


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"inputs": "seven"}, "the input is a seed"),
        (
            {"inputs": {"b64": "Nw=="}},
            "inputs holds a seed (a whole number), or nothing, as a string, not an object",
        ),
        ({"inputs": True}, "not a truth value"),
        (
            {"inputs": "7", "parameters": {"num_images": 1000}},
            "num_images is a whole number from 1 to 64, not 1000",
        ),
        (
            {"inputs": "7", "parameters": {"top_k": 3}},
            "unknown parameter 'top_k'",
        ),
        (
            {"inputs": "7", "parameters": {"steps": 3}},
            "only diffusion models take steps",
        ),
    ],
)
def test_what_is_wrong_is_said(api, document, says):
    reply = post(api, "/models/noise", document)
    assert reply.status == 400
    assert says in reply.error


def test_kserve_v1_takes_seeds_as_instances(api, seven):
    for instances in (
        ["7", 7, ""],
        [{"seed": "7"}, {"seed": 7}, {"seed": None}],
    ):
        reply = post(
            api,
            "/v1/models/noise:predict",
            {"instances": instances, "parameters": {"num_images": 3}},
        )
        assert reply.status == 200
        assert reply.json["predictions"][:2] == [seven, seven]
        assert len(reply.json["predictions"][2]) == 3


def test_sagemaker_takes_the_same_as_hugging_face(api, seven):
    reply = post(
        api,
        "/invocations",
        {"inputs": "7"},
        **{"X-Amzn-SageMaker-Target-Model": "noise"},
    )
    assert reply.json == seven[:1]


def test_openai_makes_pictures(api, seven):
    reply = post(
        api, "/v1/images/generations", {"model": "noise", "prompt": "7", "n": 3}
    )
    assert reply.status == 200
    assert reply.json["data"] == [{"b64_json": picture} for picture in seven]
    assert reply.json["created"] > 0
    assert (
        len(
            post(
                api, "/v1/images/generations", {"model": "noise", "prompt": ""}
            ).json["data"]
        )
        == 1
    )


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        ([], 400, "the JSON wants the form"),
        ({"prompt": "7"}, 400, "the JSON wants the form"),
        (
            {"model": "spots", "prompt": "7"},
            400,
            "'spots' does not support image generation: its task is image-classification",
        ),
        ({"model": "nois", "prompt": "7"}, 404, "did you mean 'noise'"),
        (
            {"model": "noise", "prompt": "7", "response_format": "url"},
            400,
            "pictures are answered as b64_json",
        ),
        ({"model": "noise", "prompt": "a cat"}, 400, "the input is a seed"),
        (
            {"model": "noise", "prompt": "7", "n": 100},
            400,
            "num_images is a whole number from 1 to 64",
        ),
    ],
)
def test_openai_says_what_is_wrong(api, document, status, says):
    reply = post(api, "/v1/images/generations", document)
    assert reply.status == status
    assert says in reply.error


def test_v2_takes_seeds_as_bytes(api, seven):
    document = {
        "inputs": [
            {
                "name": "seed",
                "datatype": "BYTES",
                "shape": [2],
                "data": ["7", "8"],
            }
        ],
        "outputs": [{"name": "answer"}],
        "parameters": {"num_images": 3},
    }
    (answer,) = post(api, "/v2/models/noise/infer", document).json["outputs"]
    assert msgspec.json.decode(answer["data"][0]) == seven
    (image,) = post(
        api, "/v2/models/noise/infer", {**document, "outputs": []}
    ).json["outputs"]
    assert (image["name"], image["shape"]) == ("image", [2, 3, 2, 2, 3])
    task = api.ask("GET", "/v2/models/noise").json["task"]
    assert task["inputs"] == [
        {"name": "seed", "datatype": "BYTES", "shape": [-1]}
    ]


def test_v2_takes_the_noise_itself(api, seven):
    noise = np.random.default_rng(7).standard_normal((3, 12), np.float32)
    tensor = {
        "name": "latent",
        "datatype": "FP32",
        "shape": [3, 12],
        "data": noise.ravel().tolist(),
    }
    (image,) = post(api, "/v2/models/noise/infer", {"inputs": [tensor]}).json[
        "outputs"
    ]
    made = np.reshape(image["data"], image["shape"])
    for picture, file in zip(made, seven, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))
        np.testing.assert_allclose(picture * 255, pixels, atol=0.51)


def test_a_seed_gets_the_same_pictures_alone_and_in_a_batch(folder, seven):
    worker = Worker(predictor.load(folder), 2)
    calls = [
        Call(number, seed.encode(), [], {"num_images": count})
        for number, (seed, count) in enumerate(
            [("1", 2), ("7", 3), ("x", 3), ("9", 3), ("7", 1), ("", 64)]
        )
    ]
    answers = worker.answer(calls).answers
    assert msgspec.json.decode(answers[1].data) == seven
    assert msgspec.json.decode(answers[4].data) == seven[:1]
    assert answers[2].code == "invalid_input"
    assert [len(msgspec.json.decode(answers[n].data)) for n in (0, 3, 5)] == [
        2,
        3,
        64,
    ]


def test_the_published_client_and_the_sdk_ask_for_pictures(
    folder, seven, tmp_path
):
    async def routes(live):
        return [
            the_route(await live.worker(tmp_path / "w", answering_with(folder)))
        ]

    live = LiveApi(routes)
    try:
        with InferenceClient(token="user-key") as hub:
            picture = hub.text_to_image("7", model=f"{live.url}/models/noise")
        assert np.array_equal(
            np.asarray(picture),
            np.asarray(Image.open(io.BytesIO(base64.b64decode(seven[0])))),
        )
        with Client(live.url, "user-key") as client:
            assert client.predict(
                "noise", "7", parameters={"num_images": 3}
            ) == [{"input": "7", "output": seven}]
            assert len(client.predict("noise")[0]["output"]) == 1
    finally:
        live.close()
