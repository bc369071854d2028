"""Texts: tables with and without header, and a file for each class."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelmill.data.base import Item
from modelmill.data.formats import csv, tsv
from modelmill.errors import InvalidInput, MillError

from .conftest import make_folder, read_all, read_with

ROWS = [
    ("fine, really", "pos"),
    ('so "so"', "neg"),
    ("two\nlines", "pos"),
    ("bad", "neg"),
]


def rows_of(items: list[Item]) -> list[tuple[str, str]]:
    return [(str(item.data), item.label) for item in items if not item.problem]


def table(tmp_path, text: str | bytes, name: str = "reviews.csv"):
    return (
        make_folder(
            tmp_path, {name: text.encode() if isinstance(text, str) else text}
        )
        / name
    )


BODY = 'pos,"fine, really"\nneg,"so ""so"""\npos,"two\nlines"\nneg,bad\n'


@pytest.mark.parametrize(
    "header",
    ["label,review", "Sentiment,TEXT", "class,words", "kind,Comment", ""],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_columns_are_found_by_name_or_by_their_values(tmp_path, header, ending):
    text = (f"{header}\n" if header else "") + BODY
    items = read_all(
        table(tmp_path, "\ufeff" + text.replace("\n", ending)), "text"
    )
    assert rows_of(items) == ROWS
    assert [item.split for item in items] == [None] * 4


def test_names_say_file_and_line(tmp_path):
    items = read_all(table(tmp_path, "label,review\n" + BODY), "text")
    assert [item.name for item in items] == [
        f"reviews.csv:{line}" for line in (2, 3, 4, 6)
    ]


@pytest.mark.parametrize(
    "options",
    [{"text": "body text", "label": "Kind"}, {"text": "2", "label": "0"}],
)
def test_options_choose_columns_by_name_or_number(tmp_path, options):
    path = table(
        tmp_path,
        "kind,text,body text\npos,x,fine\nneg,y,bad\npos,z,good\nneg,u,poor\n",
    )
    assert rows_of(read_all(path, "text", **options))[:2] == [
        ("fine", "pos"),
        ("bad", "neg"),
    ]


def test_ambiguous_columns_are_listed(tmp_path):
    path = table(tmp_path, "id,words,kind\n1,good,a\n2,bad,b\n")
    with pytest.raises(
        InvalidInput,
        match=r"--set text=COLUMN --set label=COLUMN .*0 'id', 1 'words', 2 'kind'",
    ):
        read_all(path, "text")
    with pytest.raises(
        InvalidInput,
        match=r"no column 'word' for the text; there are: id, words, kind",
    ):
        read_all(path, "text", text="word", label="kind")
    with pytest.raises(InvalidInput, match="can't tell"):
        read_all(table(tmp_path, "hello,bonjour\nyes,oui\nno,non\n"), "text")
    with pytest.raises(InvalidInput, match="is empty"):
        read_all(table(tmp_path, ""), "text")


def test_whether_there_is_a_header_can_be_said(tmp_path):
    path = table(tmp_path, "odd,x\nfine,pos\nbad,neg\nok,pos\npoor,neg\n")
    assert len(read_all(path, "text")) == 4
    assert len(read_all(path, "text", header="no")) == 5


def test_semicolons_and_tabs_in_csv_files(tmp_path):
    for mark in ";\t":
        path = table(tmp_path, f"text{mark}label\nfine, really{mark}pos\n")
        assert rows_of(read_all(path, "text")) == [("fine, really", "pos")]


def test_tsv_takes_quotes_as_they_are(tmp_path):
    path = table(
        tmp_path, 'sentence\tlabel\n"so" it goes\t1\n"open\t0\n', "dev.tsv"
    )
    assert rows_of(read_all(path, "text")) == [
        ('"so" it goes', "1"),
        ('"open', "0"),
    ]


def test_splits_come_from_a_column(tmp_path):
    text = "text,label,split\na,x,train\nb,x,dev\nc,y,TEST\nd,y,\ne,y,other\n"
    items = read_all(table(tmp_path, text), "text")
    assert [item.split for item in items[:4]] == ["train", "val", "test", None]
    assert items[4].problem == "unknown split 'other'"


def test_splits_come_from_the_names_of_several_tables(tmp_path):
    head = b"text,label\n"
    files = {
        "test.csv": head + b"c,y\n",
        "my_train.csv": head + b"a,x\n",
        "validation.csv": head + b"b,x\n",
    }
    items = read_all(make_folder(tmp_path / "set", files), "text")
    assert [(item.data, item.split) for item in items] == [
        ("a", "train"),
        ("b", "val"),
        ("c", "test"),
    ]
    with pytest.raises(
        InvalidInput, match=r"'extra\.csv' does not say which split"
    ):
        read_all(make_folder(tmp_path / "set", {"extra.csv": head}), "text")
    (tmp_path / "set/extra.csv").unlink()
    with pytest.raises(InvalidInput, match="other columns"):
        read_all(
            make_folder(tmp_path / "set", {"test.csv": b"label,text\ny,c\n"}),
            "text",
        )


def test_a_lone_table_declares_no_split(tmp_path):
    assert (
        read_all(table(tmp_path, "text,label\na,x\n", "train.csv"), "text")[
            0
        ].split
        is None
    )


def test_bad_rows_are_items_with_a_problem_and_the_rest_is_read(tmp_path):
    text = b"text,label\ngood,x\n\xff\xfe,x\nfew\nmany,x,y\nnul\0,x\nnone,\n,x\ntrailing,x,\n\nlast,x\n"
    items = read_all(table(tmp_path, text), "text")
    assert [item.problem for item in items] == [
        "",
        "not UTF-8",
        "1 columns instead of 2",
        "3 columns instead of 2",
        "holds a NUL character",
        "has no label",
        "",
        "",
        "",
    ]
    assert rows_of(items) == [
        ("good", "x"),
        ("", "x"),
        ("trailing", "x"),
        ("last", "x"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b'text,label\n"open,x\nb,x\n',
            "line 2: a quote opened here is never closed",
        ),
        (
            b'text,label\n"' + b"open,x\n" * 200_000,
            "line 2 is not a row: field larger",
        ),
        (b"text,label\n" + b"a" * (2 << 20), "longer than 1 MiB"),
    ],
)
def test_endless_fields_are_refused(tmp_path, text, message):
    with pytest.raises(InvalidInput, match=message):
        read_all(table(tmp_path, text), "text")


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [
                b"a",
                b",",
                b'"',
                b"\n",
                b"\r",
                b"\0",
                b"\xff",
                b"\t",
                b"label",
                b"text",
            ]
        ),
        max_size=40,
    )
)
@example([b"text,label\n", b"\xed\xa0\x80,x\n"])
def test_any_bytes_give_sound_items_or_a_meaning(tmp_path_factory, pieces):
    for name, module in (("any.csv", csv), ("any.tsv", tsv)):
        path = table(tmp_path_factory.getbasetemp(), b"".join(pieces), name)
        try:
            items = read_with(path, module)
        except MillError:
            continue
        assert len({item.name for item in items}) == len(items)
        for item in items:
            assert isinstance(item.data, str)
            f"{item.data}{item.label}".encode()


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["rt.neg", "rt.pos"], ["neg", "pos"]),
        (["neg.txt", "pos.txt"], ["neg", "pos"]),
        (["neg", "pos"], ["neg", "pos"]),
        (["v1.0.neg", "v1.1.pos"], ["v1.0", "v1.1"]),
    ],
)
def test_a_file_for_each_class(tmp_path, names, labels):
    files = {names[0]: b"\xef\xbb\xbfbad\r\n\nworse", names[1]: b"good\n"}
    items = read_all(make_folder(tmp_path / "set", files), "text")
    assert [(item.name, item.label, item.data) for item in items] == [
        (f"{names[0]}:1", labels[0], "bad"),
        (f"{names[0]}:2", labels[0], ""),
        (f"{names[0]}:3", labels[0], "worse"),
        (f"{names[1]}:1", labels[1], "good"),
    ]


def test_class_files_below_splits(tmp_path):
    files = {
        f"{split}/{label}.txt": b"x\n"
        for split in ("train", "test")
        for label in ("neg", "pos")
    }
    items = read_all(make_folder(tmp_path / "set", files), "text")
    assert [(item.split, item.label) for item in items] == [
        ("test", "neg"),
        ("test", "pos"),
        ("train", "neg"),
        ("train", "pos"),
    ]


def test_bad_lines_are_items_with_a_problem(tmp_path):
    files = {
        "a.txt": b"ok\n\xff\n" + b"x" * (3 << 20) + b"\nn\0l\nlast",
        "b.txt": b"",
    }
    items = read_all(make_folder(tmp_path / "set", files), "text")
    assert [(item.data, item.problem) for item in items] == [
        ("ok", ""),
        ("", "not UTF-8"),
        ("", "longer than 1 MiB"),
        ("", "holds a NUL character"),
        ("last", ""),
    ]
