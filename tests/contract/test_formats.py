"""Every format of data: what it names itself, and that it fails in words only."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelmill import plugins
from modelmill.data.base import open_source
from modelmill.errors import InvalidInput, MillError

FORMATS = plugins.names("data.formats")
FILES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "cat/1.png",
    "train/dog/2.jpg",
    "a.csv",
    "b.tsv",
]
FILES += ["pos/1.txt", "neg/2.txt", "labels.txt", "x.jsonl", "train.txt"]
FILES += [
    "Annotations/1.xml",
    "JPEGImages/1.jpg",
    "ImageSets/Main/val.txt",
    "instances_train.json",
]
FILES += ["images/1.png", "masks/1.png", "classes.txt", "instances.json"]


@pytest.fixture(params=FORMATS)
def format(request):
    return plugins.load("data.formats", request.param)


def test_it_says_what_it_is(format):
    assert format.INPUT in ("image", "text", "audio", "question")
    assert format.SUMMARY
    assert all(
        isinstance(text, str) and text for text in dict(format.OPTIONS).values()
    )


def test_an_unknown_option_is_refused(format, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,y\n")
    with (
        open_source(tmp_path) as source,
        pytest.raises(InvalidInput, match="unknown setting 'nonsense'"),
    ):
        list(format.read(source, {"nonsense": "1"}))


def test_detecting_reads_nothing_it_could_choke_on(format, tmp_path):
    (tmp_path / "notes.doc").write_bytes(b"\xff\x00")
    with open_source(tmp_path) as source:
        assert format.detect(source) in (True, False)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.dictionaries(
        st.sampled_from(FILES), st.binary(max_size=60), min_size=1, max_size=5
    )
)
def test_any_files_are_items_or_refused_in_words(
    format, tmp_path_factory, files
):
    folder = tmp_path_factory.mktemp("any")
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    try:
        with open_source(folder) as source:
            format.detect(source)
            items = [item.read() for item in format.read(source, {})]
    except MillError:
        return
    assert len({item.name for item in items}) == len(items)
