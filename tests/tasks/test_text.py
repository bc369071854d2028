"""Texts of any language become token ids, always the same ones."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.errors import BundleCorrupt, InvalidInput
from modelmill.tasks.base import Signature, plan
from modelmill.tasks.decoding import lossless_tokenizer, text_tokenizer
from modelmill.tasks.decoding.text_tokenizer import (
    SPECIAL,
    Preprocessing,
    decode,
    fingerprint,
    prepare,
    train_tokenizer,
)
from modelmill.tasks.decoding.tokenizer import load_tokenizer
from modelmill.tasks.text_classification.recipes import tfidf

ENGLISH = [
    "A fine film, warm and slow.",
    "a dull film",
    "It's a fine day",
    "the day was dull and cold",
] * 3
KINDS = ["word", "char", "bpe"]


def pieces(text, **options):
    how = Preprocessing(minimum_count=1, **options)
    tokenizer = train_tokenizer([text], how)
    return [tokenizer.name_of(token) for token in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("电影很好", ["电", "影", "很", "好"]),
        ("一部good电影2024年", ["一", "部", "good", "电", "影", "2024", "年"]),
        ("ひらカナ", ["ひ", "ら", "カ", "ナ"]),
        ("good films", ["good", "films"]),
        ("It's fine, isn't it?", ["it's", "fine", ",", "isn't", "it", "?"]),
        ("Ещё ФИЛЬМ", ["ещё", "фильм"]),
        ("a\u3000b\tc\nd", ["a", "b", "c", "d"]),
        ("\uff27\uff4f\uff4f\uff44", ["good"]),
        ("fun 😀😀", ["fun", "😀", "😀"]),
    ],
)
def test_words_are_split_as_each_script_writes_them(text, wanted):
    assert pieces(text) == wanted


def test_case_is_kept_by_a_setting():
    assert pieces("Good GOOD", lowercase=False) == ["Good", "GOOD"]


def test_characters_are_grapheme_clusters():
    assert pieces("ab\u0928\u093f", tokenizer="char") == [
        "a",
        "b",
        "\u0928\u093f",
    ]


@pytest.fixture
def prepared(tmp_path):
    return prepare(ENGLISH, Preprocessing(max_length=6), tmp_path), tmp_path


def test_short_texts_are_padded_and_long_ones_cut(prepared):
    how, folder = prepared
    short = decode("fine film", how, folder)
    long = decode("fine film " * 50, how, folder)
    assert short.shape == long.shape == (6,)
    assert short.dtype == np.int64
    assert (short[:2] > 1).all()
    assert (short[2:] == 0).all()
    assert long.tolist() == [*short[:2]] * 3


def test_a_word_outside_the_vocabulary_is_unknown(prepared):
    how, folder = prepared
    assert decode("zyzzyva film", how, folder)[0] == 1


def test_a_lone_surrogate_is_no_reason_to_fail(prepared):
    how, folder = prepared
    assert decode("fine \ud800 film", how, folder).shape == (6,)
    assert fingerprint("fine \ud800 film")


def test_texts_with_a_lone_surrogate_can_be_trained_on(tmp_path):
    assert (
        prepare(
            [*ENGLISH, "fine \ud800 film"], Preprocessing(), tmp_path
        ).tokens
        > 2
    )


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_an_empty_text_is_refused(prepared, text):
    how, folder = prepared
    with pytest.raises(InvalidInput, match="empty"):
        decode(text, how, folder)
    with pytest.raises(InvalidInput, match="empty"):
        fingerprint(text)


@pytest.mark.parametrize("data", [b"bytes", None, 5, np.zeros(3)])
def test_what_is_no_text_is_refused(prepared, data):
    how, folder = prepared
    with pytest.raises(InvalidInput, match="a text is wanted"):
        decode(data, how, folder)


def test_a_text_of_any_length_is_not_taken(prepared, monkeypatch):
    monkeypatch.setattr(text_tokenizer, "MAX_CHARACTERS", 10)
    how, folder = prepared
    with pytest.raises(InvalidInput, match="11 characters; at most 10"):
        decode("x" * 11, how, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_make_the_same_tokenizer(tmp_path, kind):
    files = []
    for name in "ab":
        (tmp_path / name).mkdir()
        prepare(
            ENGLISH + ["电影很好"] * 3,
            Preprocessing(tokenizer=kind, vocabulary=60),
            tmp_path / name,
        )
        files.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_gives_the_ids_it_was_trained_with(tmp_path, kind):
    how = Preprocessing(tokenizer=kind, max_length=32)
    prepare(ENGLISH, how, tmp_path)
    fresh = train_tokenizer(ENGLISH, how)
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    for text in [*ENGLISH[:4], "unseen words, Ünïcode 电影", "x" * 100]:
        assert loaded.encode(text) == fresh.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_covers_almost_all_texts(tmp_path, kind):
    how = prepare(
        ["a b c"] * 99 + ["a " * 1000],
        Preprocessing(tokenizer=kind, length_limit=50),
        tmp_path,
    )
    assert 3 <= how.max_length <= 50


def test_padding_and_unknown_have_the_first_ids_and_the_vocabulary_is_bounded(
    tmp_path,
):
    how = prepare(
        [f"word{i} " * 3 for i in range(100)],
        Preprocessing(vocabulary=20),
        tmp_path,
    )
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.id_of("[PAD]"), tokenizer.id_of("[UNK]")) == (0, 1)
    assert how.tokens == tokenizer.size == 20


def test_a_damaged_tokenizer_is_found(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BundleCorrupt, match=r"tokenizer\.json can't be read"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return prepare(ENGLISH, Preprocessing(max_length=8), folder), folder


@settings(max_examples=150, deadline=None)
@given(
    st.text(
        st.characters() | st.sampled_from("\ud800\udfff\0\u202e😀电"),
        min_size=1,
    )
)
def test_any_text_is_ids_of_the_vocabulary_or_empty(trained, text):
    how, folder = trained
    if not text.strip():
        return
    ids = decode(text, how, folder)
    assert ids.shape == (8,)
    assert 0 <= ids.min() <= ids.max() < how.tokens


def test_space_around_a_text_does_not_make_another_text():
    assert (
        fingerprint(" fine film\n")
        == fingerprint("fine film")
        != fingerprint("fine  film")
    )


def test_a_class_that_no_training_text_has_is_never_answered(tmp_path):
    texts = [
        "cat dog",
        "cat cow",
        "bus car",
        "bus van",
        "red pink",
        "red blue",
    ] * 3
    labels = [0, 0, 2, 2, 3, 3] * 3
    how = prepare(texts, Preprocessing(minimum_count=1), tmp_path)
    ids = np.stack([decode(text, how, tmp_path) for text in texts])
    signature = Signature(inputs=[], classes=4, preprocessing=how)
    graph, _ = tfidf.fit(
        plan(tfidf, {}), signature, {"ids": ids}, {"label": np.array(labels)}
    )
    [found] = onnxruntime.InferenceSession(graph.SerializeToString()).run(
        None, {"ids": ids}
    )
    assert found.argmax(1).tolist() == labels
    assert found[:, 1].max() == 0
    with pytest.raises(
        InvalidInput, match="all texts to train on are of one class"
    ):
        tfidf.fit(
            plan(tfidf, {}),
            signature,
            {"ids": ids},
            {"label": np.zeros(len(ids), int)},
        )


@pytest.mark.parametrize("tokenizer", ["word", "char", "bpe"])
def test_names_of_special_tokens_are_text_like_any_other(tmp_path, tokenizer):
    how = prepare(
        ["the cat [PAD] sat", "the cat [PAD] sat"],
        Preprocessing(tokenizer=tokenizer),
        tmp_path,
    )
    for name in SPECIAL:
        ids = [
            number
            for number in decode(f"the {name} cat", how, tmp_path)
            if number
        ]
        assert len(ids) > 2 + (tokenizer != "bpe")
    assert 2 not in decode("the [MASK] cat", how, tmp_path)


@pytest.mark.parametrize("units", ["char", "bpe"])
def test_names_of_special_tokens_are_letters_to_models_that_write(
    tmp_path, units
):
    text = "say [END] and [PAD]"
    tokenizer = lossless_tokenizer.learnt(
        [text], lossless_tokenizer.Units(units=units), tmp_path
    )
    ids = tokenizer.encode(text)
    assert min(ids) >= len(lossless_tokenizer.SPECIAL)
    assert tokenizer.decode(ids) == text


def test_tokens_that_are_part_of_a_character_have_their_bytes(tmp_path):
    text = "ein Müller, 磨坊 und 😀"
    tokenizer = lossless_tokenizer.learnt(
        [text], lossless_tokenizer.Units(units="bpe"), tmp_path
    )
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.bytes_of(token) for token in ids).decode() == text
    assert tokenizer.bytes_of(lossless_tokenizer.END) is None
