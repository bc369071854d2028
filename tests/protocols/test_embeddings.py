"""Vectors of texts: OpenAI's embeddings, Hugging Face's feature-extraction and sentence-similarity,
v2.
"""

import base64

import httpx2
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from openai import BadRequestError, NotFoundError, OpenAI

from modelmill.tasks.decoding.tokenizer import load_tokenizer
from tests.helpers.gateways import LiveApi, a_route
from tests.helpers.text_bundles import text_vector_bundle
from tests.helpers.workers import answering_with

SIGNATURE = {
    "task": "feature-extraction",
    "kind": "text",
    "also": ("token_ids",),
    "inputs": [],
    "outputs": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return text_vector_bundle(tmp_path_factory.mktemp("words") / "b")


@pytest.fixture(scope="module")
def live(folder, tmp_path_factory):
    async def routes(api):
        worker = await api.worker(
            tmp_path_factory.mktemp("w") / "w", answering_with(folder)
        )
        return [
            a_route("words", **SIGNATURE, sockets=[worker.path]),
            a_route("spots", sockets=[worker.path]),
        ]

    live = LiveApi(routes)
    yield live
    live.close()


@pytest.fixture
def openai(live):
    with OpenAI(
        base_url=f"{live.url}/v1", api_key="user-key", max_retries=0
    ) as client:
        yield client


@pytest.fixture
def hub(live):
    return InferenceClient(
        model=f"{live.url}/models/words", token="user-key", timeout=20
    )


def post(live, document):
    return httpx2.post(
        f"{live.url}/models/words",
        json=document,
        headers={"authorization": "Bearer user-key"},
    )


def test_openais_client_gets_vectors_of_length_1_and_what_they_cost(openai):
    found = openai.embeddings.create(
        model="words", input=["a cat sat", "a dog"]
    )
    vectors = np.array([one.embedding for one in found.data])
    assert vectors.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert [one.index for one in found.data] == [0, 1]
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (5, 5)
    assert found.model == "words"


def test_numbers_and_base64_are_the_same_vector(openai):
    plain = (
        openai.embeddings.create(
            model="words", input="a cat", encoding_format="float"
        )
        .data[0]
        .embedding
    )
    packed = (
        openai.embeddings.create(
            model="words", input="a cat", encoding_format="base64"
        )
        .data[0]
        .embedding
    )
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(packed), "<f4"),
        np.array(plain, np.float32),
    )


def test_token_ids_are_taken_as_they_are(openai, folder):
    ids = load_tokenizer(folder / "tokenizer.json").encode("a cat sat")
    one, two, alone = (
        openai.embeddings.create(model="words", input=given).data[0].embedding
        for given in ("a cat sat", [ids, ids[:1]], ids)
    )
    assert one == two == alone
    assert (
        len(openai.embeddings.create(model="words", input=[ids, ids[:1]]).data)
        == 2
    )


def test_token_ids_may_come_as_a_parameter(live, folder):
    ids = load_tokenizer(folder / "tokenizer.json").encode("a cat sat")
    (one,) = post(live, {"inputs": ["a cat sat"]}).json()
    for given in ({"token_ids": ids}, {"parameters": {"token_ids": ids}}):
        assert post(live, {"inputs": [""], **given}).json() == [one]


def test_a_kind_that_a_model_does_not_take_is_refused(live):
    document = {
        "model": "words",
        "messages": [{"role": "user", "content": "x"}],
    }
    entry = {
        "name": "conversation",
        "datatype": "BYTES",
        "shape": [1],
        "data": ["[]"],
    }
    for path, body in (
        ("/v1/chat/completions", document),
        ("/v2/models/words/infer", {"inputs": [entry]}),
    ):
        headers = {"authorization": "Bearer user-key"}
        reply = httpx2.post(f"{live.url}{path}", json=body, headers=headers)
        assert reply.status_code == 400


def test_fewer_dimensions_are_the_first_ones_at_length_1(openai):
    whole = np.array(
        openai.embeddings.create(model="words", input="a cat").data[0].embedding
    )
    few = np.array(
        openai.embeddings.create(model="words", input="a cat", dimensions=3)
        .data[0]
        .embedding
    )
    np.testing.assert_allclose(
        few, whole[:3] / np.linalg.norm(whole[:3]), atol=1e-5
    )


def test_hundreds_of_texts_are_one_request(openai):
    found = openai.embeddings.create(
        model="words", input=["a cat", "a dog sat"] * 200
    )
    assert len(found.data) == 400
    assert found.data[0].embedding == found.data[398].embedding


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input": ""}, "empty"),
        ({"input": []}, "1 to 2,048"),
        ({"input": ["a", " "]}, "input 1: the text is empty"),
        ({"input": [[1], []]}, "input 1: token ids"),
        ({"input": [10_000]}, "from 0 to"),
        ({"input": "a", "dimensions": 9}, "from 1 to 8"),
        ({"input": {"text": "a"}}, "a text, as a string"),
        ({"input": "a", "model": "spots"}, "does not support text embeddings"),
    ],
)
def test_what_can_not_be_answered_is_refused_in_openais_shape(
    openai, given, said
):
    with pytest.raises(BadRequestError, match=said) as caught:
        openai.embeddings.create(**{"model": "words", **given})
    assert caught.value.type == "invalid_request_error"


def test_an_unknown_model_is_an_error_that_names_it(openai):
    with pytest.raises(NotFoundError):
        openai.embeddings.create(model="none", input="x")


def test_hugging_faces_client_extracts_features(hub):
    one = hub.feature_extraction("a cat sat", normalize=True)
    assert one.shape == (1, 8)
    assert one.dtype == np.float32
    cut = hub.feature_extraction(
        "a cat sat a cat sat a dog", truncate=True, truncation_direction="Left"
    )
    assert cut.shape == (1, 8)
    with pytest.raises(Exception, match="truncate is false"):
        hub.feature_extraction("a cat sat a cat sat a dog", truncate=False)


def test_hugging_faces_client_compares_sentences(hub):
    same, other = hub.sentence_similarity("a cat", ["a cat", "dog sat"])
    assert same == pytest.approx(1, abs=1e-5)
    assert -1 <= other < same


@pytest.mark.parametrize(
    "inputs",
    [
        {"source_sentence": "a"},
        {"sentences": ["a"]},
        {"source_sentence": "a", "sentences": []},
        {},
    ],
)
def test_a_comparison_says_what_it_wants(live, inputs):
    reply = post(live, {"inputs": inputs})
    assert reply.status_code == 400
    assert "source_sentence" in reply.json()["error"]


def test_a_comparison_answers_numbers_alone(live):
    inputs = {"source_sentence": "a cat", "sentences": ["a dog"]}
    reply = post(live, {"inputs": inputs, "encoding_format": "base64"})
    assert reply.status_code == 400
    assert "encoding_format" in reply.json()["error"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"normalise": True}, "normalize"),
        ({"normalize": False}, "length 1"),
        ({"prompt_name": "query"}, "no prompts"),
        ({"truncation_direction": "up"}, "left or right"),
        ({"encoding_format": "hex"}, "float, base64"),
    ],
)
def test_options_of_no_meaning_are_refused(live, parameters, said):
    reply = post(live, {"inputs": "a cat", **parameters})
    assert reply.status_code == 400
    assert said in reply.json()["error"]
