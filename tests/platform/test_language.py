"""Language on a running platform: learn it from plain text, go on to a task from there, translate,
fill in.
"""

import json

import httpx2
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from openai import OpenAI

from modelmill.errors import InvalidInput, MillError, NotFound
from tests.helpers.datasets import pairs_table, questions, text_table
from tests.platform.conftest import Platform
from tests.reference.graphs import addsub

pytestmark = [
    pytest.mark.xdist_group("language"),  # its platform is made once
    pytest.mark.timeout(
        600
    ),  # it trains several models, on cores that others use too
]
SMALL = {
    "width": "32",
    "layers": "1",
    "heads": "2",
    "epochs": "2",
    "batch_size": "16",
}

EXACT = {"ema": "0", "dropout": "0", "label_smoothing": "0"}
SURE = {
    **SMALL,
    **EXACT,
    "width": "48",
    "layers": "2",
    "epochs": "60",
    "learning_rate": "0.004",
    "vocabulary": "300",
}
QUICK_READER = {
    "width": "32",
    "hidden": "32",
    "layers": "1",
    "epochs": "6",
    "dropout": "0.1",
    "learning_rate": "0.006",
}
QUICK_READER |= {"members": "1"}
NEAR = {
    **SMALL,
    "epochs": "30",
    "learning_rate": "0.01",
    "dimensions": "16",
    "word_dropout": "0",
}
ROOM = "Bob has the hat in room 900. Eve has the key in room 900. Dan has the cup in room 900."


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    platform = Platform(folder / "home")
    try:
        client = platform.client
        client.add_data(
            "reviews",
            text_table(folder / "reviews"),
            task="text-classification",
        )
        client.add_data(
            "colours", pairs_table(folder / "colours", 150), task="translation"
        )
        client.train(
            "words", task="fill-mask", data="reviews", settings=SMALL, wait=True
        )
        client.train(
            "german",
            task="translation",
            data="colours",
            settings=SURE,
            wait=True,
        )
        client.add_data(
            "rooms", questions(folder / "rooms", 300), task="question-answering"
        )
        client.train(
            "asks",
            task="question-answering",
            data="rooms",
            settings=QUICK_READER,
            wait=True,
        )
        client.train(
            "means",
            task="feature-extraction",
            data="colours",
            settings=NEAR,
            wait=True,
        )
        client.import_model("plain", addsub(folder / "addsub.onnx"))
        for name in ("words", "german", "asks", "means"):
            client.deploy(name, wait=True)
        yield platform
    finally:
        platform.end()


@pytest.fixture
def hub(running):
    return lambda name: InferenceClient(
        model=f"{running.url}/models/{name}",
        token=running.client.key,
        provider="hf-inference",
    )


def test_a_task_starts_from_what_was_learnt_of_the_language(running):
    done = running.run(
        "train",
        "mood",
        "--task",
        "text-classification",
        "--data",
        "reviews",
        "--recipe",
        "transformer",
        "--from",
        "words",
        "--set",
        "epochs=1",
        "--set",
        "freeze=encoder.embedding",
        "--wait",
        "--json",
    )
    job = json.loads(done.stdout)
    assert job["state"] == "succeeded"
    assert job["settings"] == {
        "epochs": 1,
        "freeze": "encoder.embedding",
        "from": "words:1",
    }
    log = "".join(running.client.logs(job["job"]))
    assert "starting from words:1" in log
    assert "parameters stay as they are" in log
    (origin,) = running.client.model("mood")["lineage"]["chain"]
    assert (origin["name"], origin["task"], origin["dataset"]) == (
        "words:1",
        "fill-mask",
        "reviews",
    )
    assert (
        "words:1 (fill-mask on reviews)" in running.run("model", "mood").stdout
    )
    again = running.client.train(
        "mood",
        task="text-classification",
        data="reviews",
        base="mood",
        settings={"epochs": 1},
        wait=True,
    )
    assert (again["recipe"], again["settings"]["from"]) == (
        "transformer",
        "mood:1",
    )


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"base": "nobody"}, NotFound, "unknown model 'nobody'"),
        ({"base": "words:9"}, NotFound, "no version 9"),
        (
            {"base": "plain"},
            InvalidInput,
            "plain:1 has no weights to start from",
        ),
        (
            {"base": "words"},
            InvalidInput,
            "the recipe tfidf starts from nothing; choose another: bilstm, transformer",
        ),
    ],
)
def test_what_can_be_no_start_is_refused_at_once(running, options, error, says):
    with pytest.raises(error, match=says):
        running.client.train(
            "mood2", task="text-classification", data="reviews", **options
        )


def test_a_start_that_does_not_fit_fails_the_job(running):
    with pytest.raises(MillError, match="has no weights that fit this network"):
        running.client.train(
            "mood3",
            task="text-classification",
            data="reviews",
            recipe="bilstm",
            base="words",
            wait=True,
        )


def test_missing_words_are_filled_in(hub):
    found = hub("words").fill_mask("a [MASK] film")
    assert len(found) == 5
    assert found[0].sequence.startswith("a ")
    assert found[0].score >= found[-1].score
    assert len(hub("words").fill_mask("a [MASK] film", top_k=2)) == 2


def test_sentences_are_translated(running, hub):
    said = hub("german").translation("red blue green").translation_text
    assert said == "rot blau gruen"
    body = {
        "inputs": ["white black", "black white red"],
        "parameters": {"num_beams": 2},
    }
    found = httpx2.post(
        f"{running.url}/models/german", json=body, headers=running.headers
    ).json()
    assert [one["translation_text"] for one in found] == [
        "weiss schwarz",
        "schwarz weiss rot",
    ]
    packed = hub("german").translation(
        "white black", generate_parameters={"num_beams": 2, "max_new_tokens": 5}
    )
    assert packed.translation_text == "weiss schwarz"
    rows = json.loads(
        running.run("predict", "german", "red white", "--json").stdout
    )
    assert rows[0]["output"]["translation_text"] == "rot weiss"
    assert "rot weiss" in running.run("predict", "german", "red white").stdout


def test_tasks_have_the_other_names_of_the_hub(running):
    for name, other in (
        ("sentence-similarity", "feature-extraction"),
        ("sentiment-analysis", "text-classification"),
    ):
        assert running.client.recipes(name) == running.client.recipes(other)


def test_half_a_surrogate_is_refused_before_it_is_sent(running):
    with pytest.raises(
        InvalidInput, match="udcff', half a surrogate, which is no character"
    ):
        running.client.predict("german", "red \udcff")


def test_a_version_shows_what_it_translates_and_how_that_was_measured(running):
    metrics = running.client.model("german")["metrics"]
    assert all(
        row.keys() == {"sentence", "translation", "wanted"}
        for row in metrics["samples"]
    )
    assert {row["translation"] for row in metrics["samples"]} & {
        row["wanted"] for row in metrics["samples"]
    }
    shown = running.run("model", "german").stdout
    assert metrics["bleu_signature"] in shown
    assert metrics["samples"][0]["sentence"] in shown
    card = httpx2.get(
        f"{running.url}/api/v1/models/german:1/files/README.md",
        headers=running.headers,
    ).text
    assert f"| bleu_signature | `{metrics['bleu_signature']}` |" in card
    assert f"| {metrics['samples'][0]['sentence']} |" in card


def test_a_translation_gives_its_attention(running):
    body = {
        "inputs": "red white",
        "parameters": {"attention": True, "num_beams": 1},
    }
    (found,) = httpx2.post(
        f"{running.url}/models/german", json=body, headers=running.headers
    ).json()
    assert len(found["attention"]) == len(found["target_tokens"])
    assert all(
        sum(row) == pytest.approx(1, abs=0.05) for row in found["attention"]
    )


def test_questions_are_answered_over_every_protocol(running, hub):
    found = hub("asks").question_answering(
        question="Who has the key?", context=ROOM
    )
    assert (found.answer, ROOM[found.start : found.end]) == ("Eve", "Eve")
    assert 0 < found.score <= 1
    asked = {"question": "Who has the hat?", "context": ROOM}
    rows = json.loads(
        running.run("predict", "asks", json.dumps(asked), "--json").stdout
    )
    assert rows[0]["output"]["answer"] == "Bob"
    shown = running.run(
        "predict", "asks", json.dumps(asked)
    ).stdout.splitlines()
    assert shown[0].split() == ["input", "answer", "score"]
    assert shown[1].split()[-2] == "Bob"
    tensor = {
        "name": "question",
        "datatype": "BYTES",
        "shape": [1],
        "data": [json.dumps(asked)],
    }
    body = {"inputs": [tensor], "outputs": [{"name": "answer"}]}
    reply = httpx2.post(
        f"{running.url}/v2/models/asks/infer",
        json=body,
        headers=running.headers,
    ).json()
    assert json.loads(reply["outputs"][0]["data"][0])["answer"] == "Bob"
    body = {"inputs": asked, "parameters": {"top_k": 3}}
    several = httpx2.post(
        f"{running.url}/models/asks", json=body, headers=running.headers
    ).json()
    assert len(several) == 3
    assert running.client.model("asks")["metrics"]["f1"] > 0.6
    far = f"{ROOM} {'Nobody has the map. ' * 90}"  # of another length than those that were measured
    assert (
        hub("asks")
        .question_answering(question="Who has the key?", context=far)
        .answer
    )


def test_a_sentence_lies_near_its_translation(running, hub):
    metrics = running.client.model("means")["metrics"]
    assert metrics["recall_at_1"] > 0.5
    with OpenAI(
        base_url=f"{running.url}/v1", api_key=running.client.key
    ) as client:
        found = client.embeddings.create(
            model="means",
            input=["red blue", "rot blau", "weiss gruen"],
            dimensions=16,
        )
    near, far = (
        np.dot(found.data[0].embedding, found.data[other].embedding)
        for other in (1, 2)
    )
    assert near > far
    same = hub("means").sentence_similarity(
        "red blue", ["rot blau", "weiss gruen"]
    )
    assert same == pytest.approx([near, far], abs=1e-5)
    assert "[" in running.run("predict", "means", "red blue").stdout


def test_texts_are_searched_by_meaning_and_sorted_by_their_neighbours(
    running, tmp_path
):
    client = running.client
    client.create_index("sayings", "means")
    for label, texts in (
        ("cold", ("blau blau", "blau gruen")),
        ("warm", ("rot rot", "rot weiss")),
    ):
        for number, text in enumerate(texts):
            path = tmp_path / label / f"{number}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    client.add_to_index("sayings", tmp_path)
    assert (
        client.search_index("sayings", text="red red", k=1)[0]["label"]
        == "warm"
    )
    assert (
        "cold"
        in running.run(
            "index", "search", "sayings", "--text", "blue blue", "-k", "1"
        ).stdout
    )
    assert (
        "a file, or --text" in running.run("index", "search", "sayings").stderr
    )
    client.deploy_index("sayings", "temper", k=1, wait=True)
    assert (
        client.predict("temper", "blue blue")[0]["output"][0]["label"] == "cold"
    )


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("words", {"inputs": "no gap"}, "the text has no [MASK]"),
        ("german", {"inputs": "red " * 900}, "send it sentence by sentence"),
        ("german", {"inputs": ""}, "empty"),
        (
            "asks",
            {"inputs": {"question": "Who?"}},
            'JSON of the form {"question"',
        ),
        ("asks", {"inputs": 5}, 'inputs holds {"question"'),
        ("german", {"inputs": "red", "parameters": {"beams": 2}}, "num_beams"),
    ],
)
def test_what_is_wrong_is_said(running, name, body, says):
    reply = httpx2.post(
        f"{running.url}/models/{name}", json=body, headers=running.headers
    )
    assert reply.status_code in (400, 422)
    assert says in reply.json()["error"]


def test_who_writes_no_texts_says_so(running):
    body = {"model": "words", "prompt": "x"}
    reply = httpx2.post(
        f"{running.url}/v1/completions", json=body, headers=running.headers
    )
    assert reply.status_code == 400
    assert (
        "'words' does not support text generation: its task is fill-mask"
        in reply.json()["error"]["message"]
    )
