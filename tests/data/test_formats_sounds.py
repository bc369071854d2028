"""Recordings: classes from folders, tables and names; texts from tables, LibriSpeech's files and
names.
"""

import pytest

from modelmill.data import formats
from modelmill.data.base import open_source
from modelmill.data.formats import audiofolder, transcripts
from modelmill.errors import InvalidInput
from modelmill.tasks.base import task_named
from tests.data.conftest import make_folder, make_zip
from tests.helpers.datasets import tones


def items(module, path, **options):
    with open_source(path) as source:
        return [item.read() for item in module.read(source, options)]


def folder(tmp_path, *names, **texts):
    files = {name: tones("ab"[number % 2]) for number, name in enumerate(names)}
    return make_folder(
        tmp_path / "set",
        files | {name: text.encode() for name, text in texts.items()},
    )


def table(tmp_path, names, text, place="metadata.csv"):
    files = {name: tones("ab"[number % 2]) for number, name in enumerate(names)}
    return make_folder(tmp_path / "set", files | {place: text.encode()})


@pytest.mark.parametrize(
    ("task", "format"),
    [
        ("audio-classification", "audiofolder"),
        ("automatic-speech-recognition", "transcripts"),
    ],
)
def test_recordings_are_detected_by_the_task(tmp_path, task, format):
    path = folder(tmp_path, "a/1.wav", "b/2.flac")
    with open_source(path) as source:
        assert formats.detect(source, task_named(task)) == format
    with (
        open_source(make_folder(tmp_path / "none", {"a.txt": b"x"})) as source,
        pytest.raises(InvalidInput),
    ):
        formats.detect(source, task_named(task))


def test_folders_are_classes_below_splits_or_not(tmp_path):
    found = items(
        audiofolder,
        folder(
            tmp_path,
            "train/a/1.wav",
            "train/b/1.wav",
            "test/a/2.wav",
            "test/b/2.wav",
        ),
    )
    assert {(item.split, item.label) for item in found} == {
        (s, c) for s in ("train", "test") for c in ("a", "b")
    }
    files = {
        "dogs/1.wav": tones("a"),
        "cats/1.wav": tones("b"),
        "cats/notes.txt": b"x",
    }
    found = items(audiofolder, make_zip(tmp_path / "set.zip", files))
    assert [(item.name, item.label, item.split) for item in found] == [
        ("cats/1.wav", "cats", None),
        ("dogs/1.wav", "dogs", None),
    ]


def test_names_say_the_class_and_the_split(tmp_path):
    path = folder(
        tmp_path,
        "7_jackson_0.wav",
        "7_jackson_12.wav",
        "3_nicolas_4.wav",
        "odd.wav",
    )
    found = {
        item.name: item for item in items(audiofolder, path, test="*_[0-4].wav")
    }
    assert [
        found[name].label
        for name in ("7_jackson_0.wav", "7_jackson_12.wav", "3_nicolas_4.wav")
    ] == ["7", "7", "3"]
    assert [
        found[name].split for name in ("7_jackson_0.wav", "7_jackson_12.wav")
    ] == [
        "test",
        "train",
    ]
    assert (
        found["odd.wav"].problem
        == "neither a folder nor its name says its class"
    )
    speakers = items(audiofolder, path, label=r"\d_([a-z]+)_")
    assert {item.label for item in speakers} == {"jackson", "nicolas", ""}


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("(", "no regular expression"),
        ("x", "one group"),
        ("(a)(b)", "one group"),
    ],
)
def test_an_expression_that_is_none_is_refused(tmp_path, label, says):
    with pytest.raises(InvalidInput, match=says):
        items(audiofolder, folder(tmp_path, "a_1.wav"), label=label)


def test_a_table_says_classes_and_splits(tmp_path):
    text = "file_name,label,split\n1.wav,dog,train\nsub/2.wav,cat,test\n3.wav,cat,\n"
    found = items(audiofolder, table(tmp_path, ["1.wav", "sub/2.wav"], text))
    assert [(item.name, item.label, item.split) for item in found[:2]] == [
        ("1.wav", "dog", "train"),
        ("sub/2.wav", "cat", "test"),
    ]
    assert found[2].problem == "there is no file '3.wav'"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "file_name\n1.wav\n"])
def test_a_table_without_the_columns_is_refused_with_them(tmp_path, text):
    with pytest.raises(
        InvalidInput, match="wants a column file_name and one of label"
    ):
        items(audiofolder, table(tmp_path, ["1.wav"], text))


def test_texts_of_a_table_are_made_even(tmp_path):
    text = "file_name\ttranscription\n1.wav\t  Grüß   Gott \n2.wav\t \n"
    path = table(
        tmp_path,
        ["1.wav", "2.wav"],
        text,
        "train/metadata.tsv".replace("train/", ""),
    )
    first, second = items(transcripts, path)
    assert (first.target, first.label) == ("grüß gott", "")
    assert second.problem == "nothing says what is said in it"
    assert items(transcripts, path, case="keep")[0].target == "Grüß Gott"
    with pytest.raises(InvalidInput, match="lower or keep"):
        items(transcripts, path, case="upper")


def test_librispeech_is_read_as_it_is(tmp_path):
    place = "LibriSpeech/dev-clean/84/121123/84-121123"
    files = {
        f"{place}-0000.flac": tones("a"),
        f"{place}-0001.flac": tones("b"),
        f"{place}.trans.txt": b"84-121123-0000 GO ON\n84-121123-0001 DO\n84-121123-0002 NO\n",
    }
    found = items(transcripts, make_folder(tmp_path / "set", files))
    assert [item.target for item in found[:2]] == ["go on", "do"]
    assert found[0].split == "val"
    assert "no recording of this key" in found[2].problem


def test_names_say_the_text(tmp_path):
    path = folder(tmp_path, "0_george_1.wav", "1_george_9.wav")
    found = items(transcripts, path, words="0=zero,1=one", test="*_[0-4].wav")
    assert [(item.target, item.split) for item in found] == [
        ("zero", "test"),
        ("one", "train"),
    ]
    with pytest.raises(InvalidInput, match="pairs, as 0=zero"):
        items(transcripts, path, words="zero")


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (
            transcripts,
            [
                "nothing says what is said in 'set'",
                "metadata.csv",
                "columns file_name and transcription",
                "as 1.wav,hello world",
                "trans.txt",
            ],
        ),
        (
            audiofolder,
            [
                "nothing says the classes in 'set'",
                "metadata.csv",
                "columns file_name and label",
                "as 1.wav,dog",
                "a folder for each class",
            ],
        ),
    ],
)
def test_recordings_without_a_table_are_refused_with_the_one_looked_for(
    tmp_path, module, says
):
    with pytest.raises(InvalidInput) as refused:
        items(module, folder(tmp_path, "1.wav", "2.wav"))
    for part in says:
        assert part in str(refused.value)
    assert "is there" not in str(refused.value)


@pytest.mark.parametrize("module", [transcripts, audiofolder])
def test_a_table_of_another_name_is_pointed_at(tmp_path, module):
    path = table(tmp_path, ["1.wav", "2.wav"], "file,text\n", "labels.csv")
    with pytest.raises(InvalidInput, match=r"'labels\.csv' is there"):
        items(module, path)
