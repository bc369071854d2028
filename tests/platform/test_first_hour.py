"""What a user does in the first hour, through the command line, the SDK and curl's HTTP."""

import json
import re
import stat
import struct
from pathlib import Path

import httpx2
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from modelmill import Client
from tests.platform.conftest import Platform, write_reviews


def test_a_folder_of_texts_becomes_an_endpoint_by_five_commands(
    launch, tmp_path: Path
) -> None:
    platform = launch(empty=True)
    added = platform.run(
        "data",
        "add",
        "films",
        str(write_reviews(tmp_path / "films")),
        "--task",
        "text-classification",
    )
    assert added.returncode == 0
    assert "csv" in added.stdout
    trained = platform.run(
        "train",
        "films",
        "--task",
        "text-classification",
        "--data",
        "films",
        "--recipe",
        "tfidf",
        "--wait",
        "--json",
    )
    job = json.loads(trained.stdout)
    assert (job["state"], job["model"], job["version"]) == (
        "succeeded",
        "films",
        1,
    )
    assert job["metrics"]["accuracy"] > 0.9
    assert platform.run("deploy", "films", "--wait").returncode == 0
    rows = json.loads(
        platform.run(
            "predict",
            "films",
            "lovely funny warm",
            "dull boring weak",
            "--json",
        ).stdout
    )
    assert [row["output"][0]["label"] for row in rows] == ["good", "bad"]
    assert "films" in platform.run("deployments").stdout
    assert platform.run("undeploy", "films").returncode == 0
    assert platform.run("predict", "films", "lovely").returncode == 1


def test_a_version_says_where_it_came_from(platform: Platform) -> None:
    version = json.loads(platform.run("model", "digits:2", "--json").stdout)
    assert (version["name"], version["version"], version["task"]) == (
        "digits",
        2,
        "image-classification",
    )
    assert version["metrics"]["accuracy"] > 0.85
    assert re.fullmatch("[0-9a-f]{64}", version["files"]["model.safetensors"])
    assert {
        "model.onnx",
        "README.md",
        "golden.json",
        "pictures/curves.png",
    } <= version["files"].keys()
    lineage = version["lineage"]
    assert lineage["settings"]["seed"] == lineage["seed"] == 1
    assert lineage["data_digest"] == platform.client.dataset("digits")["digest"]


def test_what_is_left_open_is_chosen_by_the_data_and_said_in_the_log(
    launch,
) -> None:
    platform = launch()
    job = platform.client.train(
        "chosen",
        task="image-classification",
        data="digits",
        settings={"epochs": "1"},
        wait=True,
    )
    assert job["settings"] == {"epochs": 1}
    assert re.search(
        r"pictures give .* steps: batch_size=32",
        "".join(platform.client.logs(job["job"])),
    )
    settings = platform.client.model("chosen")["lineage"]["settings"]
    assert (settings["epochs"], settings["batch_size"]) == (1, 32)


def test_the_model_card_and_the_pictures_can_be_fetched(
    platform: Platform,
) -> None:
    base = f"{platform.url}/api/v1/models/digits:1/files"
    card = httpx2.get(f"{base}/README.md", headers=platform.headers).text
    assert "pipeline_tag: image-classification" in card
    picture = httpx2.get(
        f"{base}/pictures/confusion.png", headers=platform.headers
    )
    assert picture.content[:4] == b"\x89PNG"
    assert (
        httpx2.get(
            f"{base}/..%2f..%2fadmin.key", headers=platform.headers
        ).status_code
        == 404
    )


def test_aliases_move_and_can_be_evaluated(platform: Platform) -> None:
    for version in (1, 2):
        assert (
            platform.run("alias", f"digits:{version}", "champion").returncode
            == 0
        )
        assert platform.client.model("digits@champion")["version"] == version
    done = platform.run(
        "evaluate",
        "digits@champion",
        "--data",
        "digits",
        "--split",
        "val",
        "--wait",
        "--json",
    )
    assert (
        json.loads(done.stdout)["metrics"]["items"]
        == platform.client.dataset("digits")["splits"]["val"]
    )


def test_what_training_measured_is_what_serving_answers(
    platform: Platform,
) -> None:
    job = platform.client.evaluate("digits:1", data="digits", wait=True)
    recorded = platform.client.model("digits:1")["metrics"]
    assert job["metrics"]["accuracy"] == pytest.approx(recorded["accuracy"])
    assert job["metrics"]["per_class"] == recorded["per_class"]


def test_the_sdk_predicts_files_bytes_and_texts(
    platform: Platform, seven: Path
) -> None:
    with Client(platform.url, platform.client.key) as client:
        by_path, by_bytes = client.predict("digits", seven, seven.read_bytes())
        assert by_path["output"] == by_bytes["output"]
        assert by_path["output"][0]["label"] == "7"
        assert (
            len(
                client.predict("digits", seven, parameters={"top_k": 3})[0][
                    "output"
                ]
            )
            == 3
        )
        assert (
            client.predict("reviews", "superb and moving")[0]["output"][0][
                "label"
            ]
            == "good"
        )


def test_the_hugging_face_client_is_answered_in_its_shapes(
    platform: Platform, seven: Path
) -> None:
    client = InferenceClient(token=platform.client.key)
    found = client.image_classification(
        str(seven), model=f"{platform.url}/models/digits"
    )
    assert found[0].label == "7"
    assert 0.5 < found[0].score <= 1
    found = client.image_classification(
        seven.read_bytes(), model=f"{platform.url}/models/digits", top_k=2
    )
    assert len(found) == 2
    texts = client.text_classification(
        "tedious and bland", model=f"{platform.url}/models/reviews"
    )
    assert texts[0].label == "bad"


def test_v2_takes_json_and_binary_tensors_alike(
    platform: Platform, seven: Path
) -> None:
    base = f"{platform.url}/v2/models/digits"
    assert (
        httpx2.get(f"{base}/ready", headers=platform.headers).status_code == 200
    )
    signature = httpx2.get(
        f"{base}/versions/1", headers=platform.headers
    ).json()
    assert signature["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}
    ]
    pixels = np.asarray(Image.open(seven))[None, :, :, None]
    tensor = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8"}
    plain = httpx2.post(
        f"{base}/infer",
        json={"id": "a", "inputs": [{**tensor, "data": pixels.tolist()}]},
        headers=platform.headers,
    ).json()
    head = {**tensor, "parameters": {"binary_data_size": 64}}
    text = json.dumps(
        {"inputs": [head], "parameters": {"binary_data_output": True}}
    ).encode()
    answer = httpx2.post(
        f"{base}/infer",
        content=text + pixels.tobytes(),
        headers={
            **platform.headers,
            "Inference-Header-Content-Length": str(len(text)),
        },
    )
    size = int(answer.headers["Inference-Header-Content-Length"])
    scores = struct.unpack("<10f", answer.content[size:])
    assert plain["id"] == "a"
    assert plain["outputs"][0]["data"] == pytest.approx(scores)
    assert int(np.argmax(scores)) == 7


def test_logs_metrics_and_catalogue_are_there(
    platform: Platform, seven: Path
) -> None:
    platform.client.predict("digits", seven)
    job = next(job for job in platform.client.jobs() if job["kind"] == "train")
    assert "evaluating" in platform.run("logs", str(job["job"])).stdout
    events = "".join(
        platform.client._follow(job["job"], "events", follow=False)
    )
    assert {json.loads(line)["event"] for line in events.splitlines()} >= {
        "stage",
        "end",
    }
    text = httpx2.get(f"{platform.url}/metrics", headers=platform.headers).text
    assert re.search(
        r'modelmill_requests_total\{deployment="digits",.*outcome="success".*\} [1-9]',
        text,
    )
    names = [
        task["name"]
        for task in json.loads(platform.run("tasks", "--json").stdout)
    ]
    assert {
        "image-classification",
        "text-classification",
        "unconditional-image-generation",
    } <= set(names)
    recipes = json.loads(
        platform.run("recipes", "image-classification", "--json").stdout
    )
    assert {recipe["name"] for recipe in recipes} == {
        "cnn",
        "hog-svm",
        "resnet",
    }


def test_the_admin_api_describes_itself_without_fetching_from_outside(
    platform: Platform,
) -> None:
    basic = httpx2.get(f"{platform.url}/docs", auth=("me", platform.client.key))
    assert basic.status_code == 200
    assert "//cdn" not in basic.text
    script = re.search(r'src="(/docs/assets/[^"]+\.js)"', basic.text)
    assert script is not None
    assert (
        httpx2.get(
            platform.url + script[1], headers=platform.headers
        ).status_code
        == 200
    )
    assert (
        "/api/v1/train"
        in httpx2.get(
            f"{platform.url}/openapi.json", headers=platform.headers
        ).json()["paths"]
    )


def test_only_its_owner_can_read_the_admin_key_and_the_database_holds_a_hash(
    platform: Platform,
) -> None:
    path = platform.home / "admin.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_bytes().strip()
    assert all(
        key not in file.read_bytes()
        for file in platform.home.glob("modelmill.db*")
    )


def test_ps_shows_what_each_process_is(platform: Platform) -> None:
    assert len(platform.children("modelmill: gateway")) == 1
    assert len(platform.children("modelmill: worker digits")) == 1
