"""An index on a running platform: enrol pictures, find them, keys that may and may not, and a `kill
-9`.
"""

import base64
import json
import signal
import zipfile

import httpx2
import numpy as np
import pytest

from modelmill import Client
from modelmill.errors import Forbidden, InvalidInput, NotFound, Unavailable
from tests.helpers.pictures import png
from tests.helpers.text_bundles import vector_bundle
from tests.platform.conftest import Platform, until

LEFT = [[250, 0], [250, 0]]
RIGHT = [[0, 250], [0, 250]]
TOP = [[250, 250], [0, 0]]


def near(pixels, by):
    return png(np.abs(np.array(pixels) - by))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    platform = Platform(folder / "home", "--gateways", "2")
    platform.client.import_model("pixels", vector_bundle(folder / "bundle"))
    platform.client.deploy("pixels", name="eyes", wait=True)
    yield platform
    platform.end()


@pytest.fixture
def shapes(running):
    running.client.create_index("shapes", "pixels")
    yield "shapes"
    running.client.delete_index("shapes")


@pytest.fixture
def pictures(tmp_path):
    for name, pixels in {"left": LEFT, "right": RIGHT}.items():
        for by in (10, 20, 30):
            path = tmp_path / "pictures" / name / f"{by}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(near(pixels, by))
    return tmp_path / "pictures"


def test_a_folder_is_enrolled_and_pictures_are_recognised_over_the_command_line(
    running, pictures, tmp_path
):
    query = tmp_path / "query.png"
    query.write_bytes(near(RIGHT, 5))
    assert (
        running.run("index", "create", "toys", "--model", "pixels").returncode
        == 0
    )
    added = running.run(
        "index",
        "add",
        "toys",
        str(pictures),
        "--metadata",
        '{"shelf": 3}',
        "--json",
    )
    assert json.loads(added.stdout) == {"ids": [1, 2, 3, 4, 5, 6]}
    found = json.loads(
        running.run(
            "index", "search", "toys", str(query), "-k", "3", "--json"
        ).stdout
    )
    assert [hit["label"] for hit in found] == ["right"] * 3
    assert found[0]["id"] == 4
    assert found[0]["metadata"] == {"shelf": 3}
    assert found[0]["score"] > found[1]["score"] > 0.9
    assert "right" in running.run("index", "search", "toys", str(query)).stdout
    assert (
        running.run("index", "remove", "toys", "4").stdout == "removed 1 item\n"
    )
    assert (
        running.run("index", "remove", "toys", "--label", "left").stdout
        == "removed 3 items\n"
    )
    assert "toys" in running.run("index", "list").stdout
    assert [
        row["id"]
        for row in json.loads(
            running.run("index", "list", "toys", "--json").stdout
        )
    ] == [5, 6]
    assert running.run("index", "delete", "toys").returncode == 0
    gone = running.run("index", "search", "toys", str(query))
    assert gone.returncode == 1
    assert "unknown index 'toys'" in gone.stderr


def test_a_data_set_is_enrolled_as_it_is(running, shapes, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set/README.md", "Pictures of two kinds.")
        for split, by in (("train", 10), ("train", 20), ("test", 30)):
            for label, pixels in (("left", LEFT), ("right", RIGHT)):
                archive.writestr(
                    f"set/{split}/{label}/{by}.png", near(pixels, by)
                )
    assert len(running.client.add_to_index(shapes, tmp_path / "set.zip")) == 6
    assert running.client.index(shapes)["labels"] == {"left": 3, "right": 3}


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04 and nothing else", b"PK\x05\x06" + bytes(18)]
)
def test_a_zip_that_holds_nothing_to_read_is_refused(
    running, shapes, tmp_path, data
):
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(InvalidInput, match=r"set\.zip"):
        running.client.add_to_index(shapes, tmp_path / "set.zip")


def test_what_one_gateway_has_answered_all_of_them_find(running, shapes):
    for number in range(20):
        item = {
            "input": base64.b64encode(near(TOP, number)).decode(),
            "label": f"n{number}",
        }
        url = f"{running.url}/api/v1/indexes/{shapes}"
        made = httpx2.post(
            f"{url}/items", json={"items": [item]}, headers=running.headers
        )
        assert made.status_code == 201
        found = httpx2.post(
            f"{url}/search?k=1",
            content=near(TOP, number),
            headers=running.headers,
        )
        assert found.json()[0]["score"] == pytest.approx(1, abs=1e-5)
        assert found.json()[0]["id"] <= made.json()["ids"][0] == number + 1


def test_a_vector_is_answered_by_every_protocol(running, tmp_path):
    picture = near(TOP, 10)
    path = tmp_path / "top.png"
    path.write_bytes(picture)
    answer = running.client.predict("eyes", path)[0]["output"]
    assert answer == pytest.approx(
        np.array([241, 241, 11, 11]) / np.linalg.norm([241, 241, 11, 11]),
        abs=1e-5,
    )
    assert (
        "[0.706, 0.706, 0.032, 0.032]"
        in running.run("predict", "eyes", str(path)).stdout
    )
    data = [base64.b64encode(picture).decode()]
    url, headers = running.url, running.headers
    raw = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    body = {"inputs": [raw], "outputs": [{"name": "answer"}]}
    told = httpx2.post(
        f"{url}/v2/models/eyes/infer", json=body, headers=headers
    ).json()
    assert json.loads(told["outputs"][0]["data"][0]) == answer
    pixels = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, 2, 2, 1],
        "data": [240, 240, 10, 10],
    }
    told = httpx2.post(
        f"{url}/v2/models/eyes/infer",
        json={"inputs": [pixels]},
        headers=headers,
    ).json()
    assert told["outputs"][0]["name"] == "embedding"
    assert told["outputs"][0]["data"] == pytest.approx(answer, abs=1e-5)
    rows = {"instances": [{"image": {"b64": data[0]}}]}
    told = httpx2.post(
        f"{url}/v1/models/eyes:predict", json=rows, headers=headers
    ).json()
    assert told["predictions"][0] == answer


def test_a_file_that_is_refused_is_named(running, shapes, pictures):
    (pictures / "left" / "notes.txt").write_text("not a picture")
    with pytest.raises(
        InvalidInput, match=r"left/notes\.txt: not a readable picture"
    ):
        running.client.add_to_index(shapes, pictures)
    with pytest.raises(
        InvalidInput, match=r"left/notes\.txt: not a readable picture"
    ):
        running.client.add_to_index(shapes, pictures / "left" / "notes.txt")
    assert running.client.index(shapes)["items"] == 0


def test_a_file_that_can_not_be_read_is_left_out_and_named(
    running, shapes, pictures
):
    (pictures / "left" / "a.png").write_bytes(b"not a picture")
    added = running.run("index", "add", shapes, str(pictures))
    assert added.returncode == 0
    assert "added 6 items" in added.stdout
    assert "left out 1" in added.stdout
    assert "left/a.png: not a readable picture" in added.stdout
    told = json.loads(
        running.run("--json", "index", "add", shapes, str(pictures)).stdout
    )
    assert len(told["ids"]) == 6
    (out,) = told["left_out"]
    assert out["file"].endswith("left/a.png")
    assert running.client.index(shapes)["labels"] == {"left": 6, "right": 6}


def test_a_strict_addition_ends_at_the_first_file_and_says_what_was_added(
    running, shapes, pictures
):
    (pictures / "left" / "a.png").write_bytes(b"not a picture")
    added = running.run("index", "add", shapes, str(pictures), "--strict")
    assert added.returncode == 1
    assert "left/a.png: not a readable picture" in added.stderr
    assert added.stderr.strip().endswith("nothing was added")
    assert running.client.index(shapes)["items"] == 0


def test_when_every_file_is_left_out_it_is_an_error(running, shapes, tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    added = running.run("index", "add", shapes, str(tmp_path / "a.png"))
    assert added.returncode == 1
    assert "nothing was added, 1 left out: " in added.stderr
    assert "a.png: not a readable picture" in added.stderr


def test_an_empty_index_says_how_items_are_added(running, shapes, tmp_path):
    how = f"the index is empty: add items with `modelmill index add {shapes} FOLDER`"
    query = tmp_path / "query.png"
    query.write_bytes(near(RIGHT, 5))
    assert how in running.run("index", "search", shapes, str(query)).stdout
    assert how in running.run("index", "list", shapes).stdout
    refused = running.run("index", "deploy", shapes, "--as", "who")
    assert refused.returncode == 1
    assert (
        f"is empty: add items with `modelmill index add {shapes} "
        in refused.stderr
    )
    assert (
        json.loads(running.run("--json", "index", "list", shapes).stdout) == []
    )


def test_items_that_are_not_base64_are_left_out_too(running, shapes):
    items = [{"input": "?"}, {"input": base64.b64encode(near(TOP, 1)).decode()}]
    url = f"{running.url}/api/v1/indexes/{shapes}/items"

    def add(**how):
        return httpx2.post(
            url, params=how, json={"items": items}, headers=running.headers
        )

    assert add().status_code == 400
    told = add(strict=False).json()
    assert len(told["ids"]) == 1
    assert [one["item"] for one in told["refused"]] == [0]


def test_items_are_added_all_or_none(running, shapes):
    with pytest.raises(InvalidInput, match="item 1: not a readable picture"):
        running.client.add_to_index(shapes, near(LEFT, 1), b"no picture")
    assert running.client.index(shapes)["items"] == 0
    with pytest.raises(InvalidInput, match="not a readable picture"):
        running.client.search_index(shapes, b"no picture")


def test_an_index_is_deployed_as_a_classifier_and_again_after_items_were_added(
    running, shapes, pictures, tmp_path
):
    client = running.client
    client.add_to_index(shapes, pictures)
    query = tmp_path / "query.png"
    query.write_bytes(near(RIGHT, 5))
    assert (
        running.run(
            "index", "deploy", shapes, "--as", "sides", "-k", "3", "--wait"
        ).returncode
        == 0
    )
    (answer,) = client.predict("sides", query)
    assert [entry["label"] for entry in answer["output"]] == ["right", "left"]
    assert answer["output"][0]["score"] > 0.9
    assert sum(entry["score"] for entry in answer["output"]) == pytest.approx(
        1, abs=1e-5
    )
    client.add_to_index(shapes, near(TOP, 1), near(TOP, 2), label="top")
    row = client.deploy_index(shapes, "sides", wait=True)
    assert (row["version"], row["task"]) == (2, "image-classification")
    assert (
        client.predict("sides", near(TOP, 3))[0]["output"][0]["label"] == "top"
    )
    assert client.model("sides:2")["lineage"]["settings"] == {
        "k": 5,
        "model": "pixels:1",
    }
    client.undeploy("sides")


def test_an_index_of_one_label_is_no_classifier(running, shapes):
    running.client.add_to_index(shapes, near(TOP, 1), label="top")
    with pytest.raises(InvalidInput, match="items of 1 labels"):
        running.client.deploy_index(shapes, "sides")


def test_a_user_may_search_but_not_change(running, shapes):
    running.client.add_to_index(shapes, near(LEFT, 1), label="left")
    key = running.client.add_key("looker")["key"]
    with Client(running.url, key) as user:
        assert user.search_index(shapes, near(LEFT, 2))[0]["label"] == "left"
        assert [row["name"] for row in user.indexes()] == [shapes]
        for change in (
            lambda: user.add_to_index(shapes, near(LEFT, 1)),
            lambda: user.remove_from_index(shapes, label="left"),
            lambda: user.create_index("mine", "pixels"),
            lambda: user.delete_index(shapes),
        ):
            with pytest.raises(Forbidden):
                change()
    running.client.remove_key("looker")
    assert (
        httpx2.post(
            f"{running.url}/api/v1/indexes/{shapes}/search", content=b"x"
        ).status_code
        == 401
    )


def test_what_is_wrong_is_said(running, shapes):
    client = running.client
    with pytest.raises(NotFound, match="unknown label 'cat'"):
        client.remove_from_index(shapes, label="cat")
    with pytest.raises(NotFound, match="unknown item '99'"):
        client.remove_from_index(shapes, 99)
    with pytest.raises(NotFound, match="unknown model 'nothing'"):
        client.create_index("other", "nothing")
    client.deploy("pixels", name="spare", wait=True)
    client.undeploy("eyes")
    client.add_to_index(
        shapes, near(LEFT, 1)
    )  # any deployment of the version will do
    client.deploy("pixels", name="eyes", wait=True)
    client.undeploy("spare")


def test_nothing_that_was_answered_is_lost_when_the_gateways_are_killed(
    running, pictures
):
    client = running.client
    client.create_index("kept", "pixels")
    ids = client.add_to_index("kept", pictures)
    gateways = running.children("modelmill: gateway")
    assert len(gateways) == 2
    for gateway in gateways:
        gateway.send_signal(signal.SIGKILL)
    running.stop(signal.SIGTERM)
    running.start()
    running.client.deploy("pixels", name="eyes", wait=True)
    assert running.client.index("kept")["items"] == len(ids) == 6
    assert (
        running.client.search_index("kept", near(LEFT, 9))[0]["label"] == "left"
    )
    running.client.undeploy("eyes")
    until(
        lambda: (
            "pixels:1, which is not deployed" in said_by_search(running.client)
        )
    )


def said_by_search(client):
    """What is wrong with searching; each gateway hears by itself of what was undeployed."""
    try:
        client.search_index("kept", near(LEFT, 9))
    except Unavailable as error:
        return str(error)
    return ""
