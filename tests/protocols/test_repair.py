"""A model that fills in pictures: the mask comes with the request, over every protocol that has a
place for it.
"""

import base64
import io
from contextlib import suppress

import msgspec
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modelmill.errors import InvalidInput
from modelmill.protocols.openai.form import PARTS, read_form
from tests.helpers.bundles import HOLES, hole_bundle
from tests.helpers.gateways import InMemoryApi, LiveApi, a_route
from tests.helpers.pictures import png
from tests.helpers.workers import answering_with


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sealed bundle that answers with the mask it was given."""
    return hole_bundle(tmp_path_factory.mktemp("mask") / "b")


def the_route(worker):
    return a_route(
        "fill",
        task="image-to-image",
        output="image",
        **HOLES,
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


PICTURE = png(np.full((8, 12, 3), 90))
HOLE = np.zeros((8, 12), bool)
HOLE[2:5, 3:9] = True
MASK = png(np.where(HOLE, 255, 0))


def hole_of(picture):
    """The mask that the model saw."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        return np.asarray(image)[:, :, 0] > 127


def form(parts, boundary="xyz"):
    """A multipart body of (name, file name or "", content), and its header."""
    body = b""
    for name, file, content in parts:
        said = f'; filename="{file}"' if file else ""
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{said}\r\n\r\n'.encode()
            + content
            + b"\r\n"
        )
    return body + f"--{boundary}--\r\n".encode(), {
        "content-type": f"multipart/form-data; boundary={boundary}"
    }


def test_hugging_face_takes_a_mask_as_a_parameter(api):
    document = {
        "inputs": base64.b64encode(PICTURE).decode(),
        "parameters": {"mask": base64.b64encode(MASK).decode()},
    }
    headers = {"content-type": "application/json", "accept": "application/json"}
    reply = api.ask(
        "POST", "/models/fill", msgspec.json.encode(document), headers
    )
    assert reply.status == 200
    assert np.array_equal(hole_of(reply.json["image"]), HOLE)


def test_v2_takes_a_mask_as_a_parameter(api):
    document = {
        "inputs": [
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [1],
                "data": [base64.b64encode(PICTURE).decode()],
                "parameters": {"content_type": "base64"},
            }
        ],
        "outputs": [{"name": "answer"}],
        "parameters": {"mask": base64.b64encode(MASK).decode()},
    }
    reply = api.ask(
        "POST",
        "/v2/models/fill/infer",
        msgspec.json.encode(document),
        {"content-type": "application/json"},
    )
    assert reply.status == 200, reply.error
    answer = msgspec.json.decode(reply.json["outputs"][0]["data"][0])
    assert np.array_equal(hole_of(answer["image"]), HOLE)


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_openai_edits_a_picture_of_a_form_in_any_order(api, name):
    parts = [
        (name, "upload", PICTURE),
        ("mask", "m.png", MASK),
        ("model", "", b"fill"),
        ("prompt", "", b"a cat"),
    ]
    for order in (parts, parts[::-1]):
        reply = api.ask("POST", "/v1/images/edits", *form(order))
        assert reply.status == 200, reply.error
        assert np.array_equal(hole_of(reply.json["data"][0]["b64_json"]), HOLE)


def test_the_official_client_edits_pictures(folder, tmp_path):
    async def routes(live):
        return [
            the_route(await live.worker(tmp_path / "w", answering_with(folder)))
        ]

    live = LiveApi(routes)
    try:
        client = openai.OpenAI(
            base_url=f"{live.url}/v1", api_key="user-key", max_retries=0
        )
        clear = png(
            np.dstack([np.full((8, 12, 3), 90), np.where(HOLE, 0, 255)])
        )
        for options in ({"image": PICTURE, "mask": clear}, {"image": [clear]}):
            found = client.images.edit(model="fill", prompt="", **options)
            assert np.array_equal(hole_of(found.data[0].b64_json), HOLE)
    finally:
        live.close()


@pytest.mark.parametrize(
    ("parts", "status", "says"),
    [
        ([("model", "", b"fill")], 400, "the form has no 'image'"),
        (
            [("model", "", b"fill"), ("image", "a", b"")],
            400,
            "the form wants one file 'image'",
        ),
        (
            [
                ("model", "", b"fill"),
                ("image", "a", PICTURE),
                ("image", "b", PICTURE),
            ],
            400,
            "one file 'image', not 2",
        ),
        (
            [("model", "", b"fill"), ("image", "a", PICTURE)],
            400,
            "does not say what to fill in",
        ),
        (
            [
                ("model", "", b"fill"),
                ("image", "a", PICTURE),
                ("mask", "m", b"x"),
            ],
            400,
            "mask: ",
        ),
        (
            [("model", "", b"fill"), ("image", "a", PICTURE), ("n", "", b"2")],
            400,
            "n is 1",
        ),
        (
            [
                ("model", "", b"fill"),
                ("image", "a", PICTURE),
                ("response_format", "", b"url"),
            ],
            400,
            "b64_json",
        ),
        (
            [("model", "", b"spots"), ("image", "a", PICTURE)],
            400,
            "'spots' does not support image edits",
        ),
        (
            [("model", "", b"fil"), ("image", "a", PICTURE)],
            404,
            "did you mean 'fill'",
        ),
        (
            [("model", "", b"\xff"), ("image", "a", PICTURE)],
            400,
            "not valid UTF-8",
        ),
        (
            [("model", "", b"fill"), ("model", "", b"fill")],
            400,
            "'model' 2 times",
        ),
        ([("", "", b"fill")], 400, "has no name"),
        ([("x", "", b"")] * (PARTS + 1), 400, f"more than {PARTS} parts"),
    ],
)
def test_openai_says_what_is_wrong_with_a_form(api, parts, status, says):
    reply = api.ask("POST", "/v1/images/edits", *form(parts))
    assert reply.status == status
    assert says in reply.error


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "application/json"),
        (b"", "multipart/form-data"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"hello", "multipart/form-data; boundary=x"),
        (form([("a", "", b"1")])[0][:-8], "multipart/form-data; boundary=xyz"),
        (
            form([("a", "", b"1")])[0],
            f"multipart/form-data; boundary={'y' * 5000}",
        ),
    ],
)
def test_what_is_no_form_is_refused(body, kind):
    with pytest.raises(InvalidInput):
        read_form(body, kind)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z\[\]]{1,9}", fullmatch=True), st.binary()
        ),
        max_size=6,
    )
)
def test_what_is_sent_in_a_form_is_what_is_read(fields):
    body, headers = form(
        [(name, "f", content) for name, content in fields],
        boundary="aB0-never-in-it",
    )
    wanted: dict[str, list[bytes]] = {}
    for name, content in fields:
        wanted.setdefault(name, []).append(content)
    assert read_form(body, headers["content-type"]) == wanted


@given(st.binary(max_size=300), st.text(max_size=60))
def test_no_bytes_are_more_than_refused(body, kind):
    for content_type in (kind, f"multipart/form-data; boundary={kind}"):
        with suppress(InvalidInput):
            read_form(body, content_type)


def test_a_large_mask_is_not_sent_with_every_one_of_many_pictures(api):
    picture, mask = base64.b64encode(PICTURE).decode(), "A" * (2 << 20)
    document = {"inputs": [picture] * 64, "parameters": {"mask": mask}}
    headers = {"content-type": "application/json", "accept": "application/json"}
    reply = api.ask(
        "POST", "/models/fill", msgspec.json.encode(document), headers
    )
    assert reply.status == 413
    assert "send fewer inputs" in reply.error
