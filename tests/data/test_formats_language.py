"""Plain texts, conversations and translations: what is read, in which order, and what is
refused.
"""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.data.base import open_source
from modelmill.data.formats import messages, parallel, plaintext, scored
from modelmill.errors import InvalidInput


def write(root, **files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def read(format, root, **options):
    with open_source(root) as source:
        return list(format.read(source, options))


# ---- plain text


@given(st.text(max_size=30_000).filter(lambda text: "\r" not in text))
def test_passages_put_together_are_the_text(text):
    parts = list(plaintext.passages(text))
    assert "".join(parts) == text
    assert all(len(part) <= plaintext.PASSAGE for part in parts)


def test_a_single_text_is_split_by_place(tmp_path):
    items = read(
        plaintext, write(tmp_path, **{"book.txt": "a line of text\n" * 2000})
    )
    splits = [item.split for item in items]
    assert splits.index("test") == len(items) - splits.count(
        "test"
    )  # the last ones
    assert len(items) // 10 == splits.count("test")
    assert splits.count("val") == 1
    assert all(item.name.endswith("+") for item in items[:-1])
    assert not items[-1].name.endswith("+")


@pytest.mark.parametrize("count", [*range(1, 45), 560])
def test_a_text_of_any_length_has_something_to_learn_from(count):
    splits = [
        plaintext._split_of_passage(number, count) for number in range(count)
    ]
    assert splits[0] == "train"
    assert ("test" in splits) == (count > 2)
    assert ("val" in splits) == (count > 1)
    assert splits.count("test") <= max(1, count / 10)


def test_file_names_give_the_splits_of_several_texts(tmp_path):
    items = read(
        plaintext,
        write(
            tmp_path,
            **{"train/a.txt": "one", "test/b.txt": "two", "c.txt": "three"},
        ),
    )
    assert [(item.data, item.split) for item in items] == [
        ("three", None),
        ("two", "test"),
        ("one", "train"),
    ]


def test_what_is_no_text_is_a_finding(tmp_path):
    (item, _) = read(
        plaintext,
        write(tmp_path, **{"a.txt": b"\xff\xfe\x00", "b.txt": "fine"}),
    )
    assert "can't be read as text" in item.problem


# ---- conversations

TURN = {
    "messages": [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
    ]
}


def test_each_line_is_a_conversation(tmp_path):
    root = write(
        tmp_path,
        **{"train.jsonl": json.dumps(TURN) + "\n\n" + json.dumps(TURN)},
    )
    with open_source(root) as source:
        assert messages.detect(source)
    items = read(messages, root)
    assert [item.data for item in items] == [
        "user:\nHello?\n\nassistant:\nHi."
    ] * 2
    assert [item.split for item in items] == ["train", "train"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"messages": []}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [5]}',
        '{"text": "x"}',
    ],
)
def test_a_line_that_is_no_conversation_is_a_finding(tmp_path, line):
    items = read(
        messages, write(tmp_path, **{"a.jsonl": json.dumps(TURN) + "\n" + line})
    )
    assert [bool(item.problem) for item in items] == [False, True]


# ---- translations


def test_languages_are_detected_by_the_suffix(tmp_path):
    files = {
        "train.en.gz": gzip.compress(b"a house\na dog\n"),
        "train.de.gz": gzip.compress(b"ein Haus\nein Hund\n"),
    }
    files |= {
        "val.en": b"a cat\n",
        "val.de": b"eine Katze\n",
        "notes.txt": b"nothing\n",
    }
    root = write(tmp_path, **files)
    with open_source(root) as source:
        assert parallel.detect(source)
    items = read(parallel, root, source="en")
    assert [(item.data, item.target, item.split) for item in items] == [
        ("a house", ("ein Haus",), "train"),
        ("a dog", ("ein Hund",), "train"),
        ("a cat", ("eine Katze",), "val"),
    ]
    assert read(parallel, root)[0].data == "ein Haus"  # by the alphabet
    assert [item.split for item in read(parallel, root, skip="train*")] == [
        "val"
    ]


def test_pairs_have_a_tab_between(tmp_path):
    root = write(
        tmp_path, **{"cmn.txt": "Hi.\t嗨。\nRun!\t跑了\tmore\nalone\nleft\t\n"}
    )
    with open_source(root) as source:
        assert parallel.detect(source)
    items = read(parallel, root)
    assert [(item.data, item.target) for item in items[:2]] == [
        ("Hi.", ("嗨。",)),
        ("Run!", ("跑了",)),
    ]
    assert "1 columns" in items[2].problem
    assert items[3].problem == "has no translation"
    assert read(parallel, root, source="1", target="0")[0].data == "嗨。"


@pytest.mark.parametrize(
    ("files", "options", "says"),
    [
        ({"a.en": "x\n", "a.de": "x\ny\n"}, {}, "different numbers of lines"),
        (
            {"a.en": "x\n", "a.de": "x\n"},
            {"source": "fr"},
            "there is no language 'fr': de, en",
        ),
        (
            {"a.en": "x\n", "a.de": "x\n"},
            {"source": "en", "target": "en"},
            "say source=LANGUAGE",
        ),
        (
            {"a.en": "x", "a.de": "x", "a.fr": "x"},
            {},
            "say source=LANGUAGE and target=LANGUAGE; there are: de, en, fr",
        ),
        ({"a.pdf": "x"}, {}, "no files of two languages"),
        ({"a.txt": "x\ty"}, {"source": "en"}, "the number of a column"),
        ({"a.en": "x\n", "a.de": "x\n"}, {"from": "en"}, "from"),
        (
            {"a.en.gz": gzip.compress(b"x\n" * 999)[:20], "a.de": "x\n" * 999},
            {},
            "damaged",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, files, options, says):
    with pytest.raises(InvalidInput, match=says):
        read(parallel, write(tmp_path, **files), **options)


def test_a_line_that_is_not_utf8_is_a_finding(tmp_path):
    items = read(
        parallel,
        write(
            tmp_path, **{"a.en": b"fine\n\xff\n", "a.de": b"gut\nschlecht\n"}
        ),
        source="en",
    )
    assert ["UTF-8" in item.problem for item in items] == [False, True]


# ---- pairs with scores


SCORED = 'sentence1,sentence2,score\na cat,a kitten,4.5\n"one, two",three,0\n'


def test_scored_pairs_are_read(tmp_path):
    root = write(
        tmp_path,
        **{
            "sts-train.csv": SCORED,
            "sts-test.csv": SCORED.replace("cat", "dog"),
        },
    )
    with open_source(root) as source:
        assert scored.detect(source)
    items = read(scored, root)
    assert [(item.data, item.target, item.split) for item in items] == [
        ("a dog", ("a kitten", 4.5), "test"),
        ("one, two", ("three", 0.0), "test"),
        ("a cat", ("a kitten", 4.5), "train"),
        ("one, two", ("three", 0.0), "train"),
    ]


def test_columns_of_scored_pairs_can_be_named(tmp_path):
    root = write(tmp_path, **{"a.tsv": "left\tright\talike\nx\ty\t1\n"})
    with open_source(root) as source:
        assert not scored.detect(source)
    with pytest.raises(
        InvalidInput,
        match="which column is the first\\? Say first=COLUMN, one of: left, right, alike",
    ):
        read(scored, root)
    assert read(scored, root, first="left", second="right", score="alike")[
        0
    ].target == ("y", 1.0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,b,much", "no number"),
        ("a,b,inf", "not finite"),
        ("a,b", "2 columns"),
        ("a,,1", "no second text"),
    ],
)
def test_a_row_without_a_score_is_a_problem(tmp_path, row, said):
    (item,) = read(
        scored, write(tmp_path, **{"a.csv": f"text1,text2,score\n{row}\n"})
    )
    assert said in item.problem
