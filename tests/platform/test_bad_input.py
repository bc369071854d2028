"""Bad input gets one clear line or the right 4xx; nothing crashes and nobody else notices."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from modelmill.protocols.app import http_protocols
from tests.platform.conftest import Platform, write_digits


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("deploy", "digts"), "did you mean 'digits'"),
        (("deploy", "digits:9"), "there are: 1, 2"),
        (("deploy", "digits@best"), "unknown alias"),
        (
            ("train", "x", "--task", "image-clasification", "--data", "digits"),
            "did you mean 'image-classification'",
        ),
        (
            ("train", "x", "--task", "image-classification", "--data", "digit"),
            "did you mean 'digits'",
        ),
        (
            (
                "train",
                "x",
                "--task",
                "image-classification",
                "--data",
                "digits",
                "--recipe",
                "resnt",
            ),
            "did you mean 'resnet'",
        ),
        (
            (
                "train",
                "x",
                "--task",
                "image-classification",
                "--data",
                "digits",
                "--set",
                "epoch=3",
            ),
            "did you mean 'epochs'",
        ),
        (
            (
                "train",
                "x",
                "--task",
                "image-classification",
                "--data",
                "digits",
                "--set",
                "epochs=0",
            ),
            "epochs=0",
        ),
        (
            (
                "train",
                "x",
                "--task",
                "image-classification",
                "--data",
                "reviews",
            ),
            "was added for text-classification",
        ),
        (
            (
                "train",
                "digits",
                "--task",
                "text-classification",
                "--data",
                "reviews",
            ),
            "another name",
        ),
        (
            (
                "train",
                "../x",
                "--task",
                "image-classification",
                "--data",
                "digits",
            ),
            "not a valid name",
        ),
        (
            ("evaluate", "digits", "--data", "digits", "--split", "tset"),
            "has no tset split",
        ),
        (
            ("evaluate", "digits", "--data", "reviews"),
            "was added for text-classification",
        ),
        (("predict", "digits", "/no/such.png"), "there is no file"),
        (("predict", "nothing", "text"), "there are: digits, reviews"),
        (("job", "999"), "unknown job"),
        (
            (
                "data",
                "add",
                "y",
                "/no/such/folder",
                "--task",
                "image-classification",
            ),
            "no file or folder",
        ),
        (("data", "show", "digts"), "did you mean 'digits'"),
    ],
)
def test_a_wrong_command_says_what_would_be_right_in_one_line(
    platform: Platform, arguments: tuple[str, ...], words: str
) -> None:
    done = platform.run(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words in done.stderr


def test_every_file_of_the_request_samples_is_answered(
    platform: Platform, shared: Callable[[str], Path]
) -> None:
    folder = shared("data/request_samples")
    manifest = {
        entry["file"]: entry
        for entry in json.loads((folder / "manifest.json").read_text())
    }
    worker = platform.children("modelmill: worker digits")[0].pid
    for name, entry in manifest.items():
        answer = httpx2.post(
            f"{platform.url}/models/digits",
            content=(folder / name).read_bytes(),
            headers=platform.headers,
        )
        if entry["pillow13"] == "decodes":
            assert answer.status_code == 200, (name, answer.text)
            assert len(answer.json()) == 5
        else:
            assert answer.status_code in (400, 413), (name, answer.text)
            assert set(answer.json()) == {"error"}
    assert platform.children("modelmill: worker digits")[0].pid == worker


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"", "", "the body is empty"),
        (b"hello", "", "not a readable picture"),
        (b'{"inputs": "%%%"}', "application/json", "base64"),
        (b'{"inputs": ', "application/json", "not valid JSON"),
        (b'{"wrong": 1}', "application/json", "inputs"),
        (b'{"inputs": 3}', "application/json", "base64"),
        (
            b'{"inputs": "aGVsbG8="}',
            "application/json",
            "not a readable picture",
        ),
    ],
)
def test_a_bad_picture_gets_a_400_that_says_why(
    platform: Platform, body: bytes, content_type: str, words: str
) -> None:
    headers = {
        **platform.headers,
        **({"Content-Type": content_type} if content_type else {}),
    }
    answer = httpx2.post(
        f"{platform.url}/models/digits", content=body, headers=headers
    )
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    "value", ["1" + "0" * 30, "[" * 900 + "]" * 900, "-5", "[]", '"many"']
)
def test_odd_parameters_are_refused_and_the_next_call_is_answered(
    platform: Platform, value: str
) -> None:
    headers = {**platform.headers, "Content-Type": "application/json"}
    body = (
        f'{{"inputs": "lovely", "parameters": {{"top_k": {value}}}}}'.encode()
    )
    refused = httpx2.post(
        f"{platform.url}/models/reviews", content=body, headers=headers
    )
    assert refused.status_code == 400, refused.text
    assert platform.client.predict("reviews", "lovely")[0]["output"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train",),
        ("nonsense",),
        ("job", "x"),
        ("deploy", "a", "--replicas", "many"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_with_json_one_document(
    platform: Platform, arguments: tuple[str, ...]
) -> None:
    done = platform.run(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert json.loads(platform.run(*arguments, "--json").stdout)["error"]


@pytest.mark.parametrize(
    "text", ["", "   ", "\ud800", "x" * 2_000_000, "\x00", "中文", "🙂" * 500]
)
def test_odd_texts_are_answered_or_refused(
    platform: Platform, text: str
) -> None:
    body = json.dumps({"inputs": text}).encode()
    headers = {**platform.headers, "Content-Type": "application/json"}
    answer = httpx2.post(
        f"{platform.url}/models/reviews", content=body, headers=headers
    )
    assert answer.status_code in (200, 400)


def test_no_route_but_health_answers_without_a_key(platform: Platform) -> None:
    paths = [
        (route.method, route.pattern, route.public)
        for p in http_protocols().values()
        for route in p.ROUTES
    ]
    admin = httpx2.get(
        f"{platform.url}/openapi.json", headers=platform.headers
    ).json()["paths"]
    paths += [
        (method.upper(), path, False)
        for path, methods in admin.items()
        for method in methods
    ]
    paths += [
        ("GET", "/docs", False),
        ("GET", "/openapi.json", False),
        ("GET", "/docs/assets/x.js", False),
    ]
    paths += [("GET", "/nothing/here", False), ("DELETE", "/livez", False)]
    assert len(paths) > 30
    for method, pattern, public in paths:
        path = pattern.replace("{", "").replace("}", "")
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic !!!"},
        ):
            answer = httpx2.request(
                method, platform.url + path, headers=headers
            )
            assert (answer.status_code == 401) is not public, (
                method,
                path,
                answer.status_code,
            )


def test_data_that_cannot_be_used_leave_no_files(
    platform: Platform, tmp_path: Path
) -> None:
    for number in range(3):
        (tmp_path / "lone" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), number).save(
            tmp_path / "lone" / "cat" / f"{number}.png"
        )
    (tmp_path / "lone" / "dog").mkdir()
    (tmp_path / "lone" / "dog" / "0.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("../../cat/1.png", b"x")
    for path, words in (
        ("lone", "one class"),
        ("empty", "no files"),
        ("evil.zip", "unsafe name"),
    ):
        done = platform.run(
            "data",
            "add",
            "unusable",
            str(tmp_path / path),
            "--task",
            "image-classification",
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert "unusable" not in platform.run("data", "list").stdout


def test_what_is_no_model_is_refused_whatever_its_name(
    platform: Platform, tmp_path: Path
) -> None:
    for name in ("model.onnx", "model.bin"):
        (tmp_path / name).write_bytes(b"no model at all")
        done = platform.run("import", "nothing", str(tmp_path / name))
        assert done.returncode == 1
        assert "no ONNX model" in done.stderr
        gone = platform.run(
            "import", "nothing", str(tmp_path / f"missing-{name}")
        )
        assert "there is no file" in gone.stderr


def test_a_body_without_the_json_content_type_gets_an_error_that_says_so(
    platform: Platform,
) -> None:
    answer = httpx2.post(
        f"{platform.url}/api/v1/keys",
        content=b'{"name": "x"}',
        headers=platform.headers,
    )
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]


def test_strict_refuses_what_is_otherwise_only_reported(
    platform: Platform, tmp_path: Path
) -> None:
    folder = write_digits(tmp_path / "digits", 60)
    (folder / "1" / "broken.png").write_bytes(b"\x89PNG broken")
    strict = platform.run(
        "data",
        "add",
        "broken",
        str(folder),
        "--task",
        "image-classification",
        "--strict",
    )
    assert strict.returncode == 1
    assert "undecodable (1)" in strict.stderr
    lenient = platform.run(
        "data", "add", "broken", str(folder), "--task", "image-classification"
    )
    assert lenient.returncode == 0
    assert "broken.png" in lenient.stdout
    assert platform.run("data", "remove", "broken").returncode == 0


def test_a_set_without_anything_to_test_on_is_not_trained_on(
    platform: Platform, tmp_path: Path
) -> None:
    rows = [
        f"film {number} was {word},{word},train"
        for number in range(20)
        for word in ("fine", "dull")
    ]
    (tmp_path / "films.csv").write_text("\n".join(["text,label,split", *rows]))
    platform.client.add_data(
        "untested", tmp_path / "films.csv", task="text-classification"
    )
    done = platform.run(
        "train", "x", "--task", "text-classification", "--data", "untested"
    )
    assert done.returncode == 1
    assert "no test split" in done.stderr
    platform.client.remove_data("untested")


def test_adding_the_same_data_twice_is_the_same_and_other_data_is_refused(
    platform: Platform, tmp_path: Path
) -> None:
    folder = write_digits(tmp_path / "digits", 60)
    first = platform.client.add_data(
        "twice", folder, task="image-classification"
    )
    assert (
        platform.client.add_data("twice", folder, task="image-classification")
        == first
    )
    (folder / "1" / "more.png").write_bytes(
        (folder / "2" / "2.png").read_bytes()
    )
    done = platform.run(
        "data", "add", "twice", str(folder), "--task", "image-classification"
    )
    assert done.returncode == 1
    assert "another data set" in done.stderr
    platform.client.remove_data("twice")


def test_a_second_platform_on_the_same_home_is_refused(
    platform: Platform,
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "modelmill.cli",
            "up",
            "--home",
            str(platform.home),
            "--port",
            "0",
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert f"pid {platform.process.pid}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_taken_port_is_refused(platform: Platform, tmp_path: Path) -> None:
    port = platform.url.rpartition(":")[2]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "modelmill.cli",
            "up",
            "--home",
            str(tmp_path / "home"),
            "--port",
            port,
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
