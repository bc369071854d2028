"""A loaded model answers as it did when it was made, or is not loaded."""

import numpy as np
import pytest

from modelmill import bundle, predictor
from modelmill.errors import BundleCorrupt, InvalidInput, NotFound, NotInstalled
from modelmill.predictor import Predictor, read_golden, write_golden
from modelmill.tasks.base import same_numbers
from tests.helpers.bundles import a_manifest, brightness_graph, picture_bundle
from tests.helpers.pictures import png
from tests.helpers.text_bundles import text_bundle


def reseal(folder, change):
    """A bundle whose files were changed by somebody who also made the digests right."""
    manifest = bundle.read_manifest(folder)
    change(folder)
    draft = folder.with_name("again.draft")
    folder.rename(draft)
    bundle.seal(draft, manifest, folder)
    return folder


def test_a_bundle_answers_from_bytes_to_labels(tmp_path):
    model = predictor.load(picture_bundle(tmp_path / "b"))
    answers = model.predict(
        [png(np.full((2, 2), 51)), png(np.full((5, 3), 255))]
    )
    assert [answer[0]["label"] for answer in answers] == ["dark", "bright"]
    assert [answer[0]["score"] for answer in answers] == pytest.approx(
        [0.8, 1.0], abs=1e-5
    )


def test_a_text_bundle_loads(tmp_path):
    answer = predictor.load(text_bundle(tmp_path / "b")).predict(["good film"])[
        0
    ]
    assert [entry["score"] for entry in answer] == pytest.approx([0.5, 0.5])


def test_weights_that_answer_otherwise_are_refused(tmp_path):
    other = brightness_graph(gain=0.9).SerializeToString()
    folder = reseal(
        picture_bundle(tmp_path / "b"),
        lambda f: (f / "model.onnx").write_bytes(other),
    )
    bundle.open_bundle(folder)
    with pytest.raises(BundleCorrupt, match="golden input 0 is answered"):
        predictor.load(folder)


def test_weights_that_differ_by_rounding_are_taken(tmp_path):
    other = brightness_graph(gain=0.9999).SerializeToString()
    folder = reseal(
        picture_bundle(tmp_path / "b"),
        lambda f: (f / "model.onnx").write_bytes(other),
    )
    predictor.load(folder)


def test_a_golden_input_that_no_longer_decodes_is_refused(tmp_path):
    folder = reseal(
        picture_bundle(tmp_path / "b"),
        lambda f: write_golden(f, [b"no picture"], [[]]),
    )
    with pytest.raises(
        BundleCorrupt, match="golden input 0 is no longer accepted"
    ):
        predictor.load(folder)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[1]", b'[{"input": "x"}]', b"[]", b"\xff"]
)
def test_a_bundle_without_a_readable_golden_set_is_refused(tmp_path, content):
    def change(folder):
        (folder / "golden.json").unlink()
        if content is not None:
            (folder / "golden.json").write_bytes(content)

    folder = reseal(picture_bundle(tmp_path / "b"), change)
    with pytest.raises(BundleCorrupt):
        predictor.load(folder)


def test_the_golden_set_keeps_bytes_and_texts(tmp_path):
    write_golden(tmp_path, [b"\x00\xff", "ü\u2028"], [[1], {"a": 2.5}])
    assert read_golden(tmp_path) == [
        {"input": b"\x00\xff", "output": [1]},
        {"input": "ü\u2028", "output": {"a": 2.5}},
    ]


def ranking(**scores):
    return [{"label": label, "score": score} for label, score in scores.items()]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1.0, 1.0005, True),
        (1.0, 1.01, False),
        (1000.0, 1001.0, True),
        (1000.0, 1010.0, False),
        (1, 1.0, True),
        ("a", "a", True),
        ("a", "b", False),
        ([1, 2], [1, 2], True),
        ([1, 2], [1], False),
        ({"a": 1.0}, {"a": 1.0001}, True),
        ({"a": 1.0}, {"b": 1.0}, False),
        (ranking(a=0.9, b=0.1), ranking(a=0.9, b=0.1), True),
        (ranking(a=0.5004, b=0.4996), ranking(b=0.5003, a=0.4997), True),
        (ranking(a=0.9, b=0.1), ranking(b=0.9, a=0.1), False),
        (
            ranking(a=0.9, b=0.0501, c=0.0499),
            ranking(a=0.9, c=0.05, b=0.05),
            True,
        ),
        (ranking(a=0.9, b=0.0501), ranking(a=0.9, c=0.05), True),
        (ranking(a=0.9, b=0.1), ranking(c=0.9, b=0.1), False),
        (ranking(a=0.9), ranking(a=0.9, b=0.1), False),
        ([], [], True),
        (None, None, True),
        (1.0, "1.0", False),
        (float("nan"), 1.0, False),
    ],
)
def test_answers_are_the_same_but_for_rounding(one, other, same):
    assert same_numbers(one, other, 2e-3) is same
    assert same_numbers(other, one, 2e-3) is same


def test_one_batch_answers_as_many_single_ones(tmp_path):
    model = Predictor(
        *(lambda folder: (folder, bundle.open_bundle(folder)))(
            picture_bundle(tmp_path / "b")
        )
    )
    pictures = [png(np.full((2, 2), value)) for value in (0, 100, 200, 255)]
    assert model.predict(pictures) == [
        model.predict([one])[0] for one in pictures
    ]


def test_another_engine_than_the_manifest_names_can_serve_a_bundle(tmp_path):
    folder = picture_bundle(tmp_path / "b")
    try:
        model = predictor.load(folder, engine="openvino")
    except NotInstalled as missing:
        pytest.skip(str(missing))
    assert type(model.session) is not type(predictor.load(folder).session)
    assert model.manifest.engine == "onnx"
    answer = model.predict([png(np.full((2, 2), 51))])[0]
    assert [entry["score"] for entry in answer] == pytest.approx(
        [0.8, 0.2], abs=1e-5
    )


def test_the_golden_set_is_replayed_by_whatever_engine_is_chosen(tmp_path):
    other = brightness_graph(gain=0.9).SerializeToString()
    folder = reseal(
        picture_bundle(tmp_path / "b"),
        lambda f: (f / "model.onnx").write_bytes(other),
    )
    try:
        with pytest.raises(BundleCorrupt, match="golden input 0 is answered"):
            predictor.load(folder, engine="openvino")
    except NotInstalled as missing:
        pytest.skip(str(missing))


def test_a_bf16_answer_may_be_further_off_but_not_wrong(tmp_path):
    near = brightness_graph(gain=0.99).SerializeToString()
    far = brightness_graph(gain=0.8).SerializeToString()
    good = picture_bundle(tmp_path / "good")
    try:
        predictor.load(good, engine="openvino", precision="bf16")
    except (NotInstalled, InvalidInput) as missing:
        pytest.skip(str(missing))
    folder = reseal(
        picture_bundle(tmp_path / "near"),
        lambda f: (f / "model.onnx").write_bytes(near),
    )
    predictor.load(folder, engine="openvino", precision="bf16")
    with pytest.raises(BundleCorrupt):
        predictor.load(folder, engine="openvino", precision="fp32")
    folder = reseal(
        picture_bundle(tmp_path / "far"),
        lambda f: (f / "model.onnx").write_bytes(far),
    )
    with pytest.raises(BundleCorrupt, match="golden input"):
        predictor.load(folder, engine="openvino", precision="bf16")


@pytest.mark.parametrize(
    ("chosen", "kind", "says"),
    [
        ({"engine": "onyx"}, NotFound, "did you mean 'onnx'"),
        (
            {"precision": "bf16"},
            InvalidInput,
            "'onnx' has no precision 'bf16'; it has: fp32",
        ),
        (
            {"engine": "onnx", "precision": "int4"},
            InvalidInput,
            "'onnx' has no precision 'int4'",
        ),
    ],
)
def test_an_engine_or_a_precision_that_is_not_there_is_refused_in_words(
    tmp_path, chosen, kind, says
):
    with pytest.raises(kind, match=says):
        predictor.load(picture_bundle(tmp_path / "b"), **chosen)


def test_an_engine_that_writes_no_texts_is_named_also_as_the_bundles_own(
    tmp_path,
):
    manifest = a_manifest(task="text-generation", engine="openvino")
    with pytest.raises(
        InvalidInput, match="on the engine onnx, not on openvino"
    ):
        Predictor(tmp_path, manifest)


def test_manifest_and_file_replaced_together_are_refused(tmp_path):
    there = picture_bundle(tmp_path / "one")
    other = picture_bundle(tmp_path / "other", gain=0.5)
    registered = bundle.digest_of(there)
    predictor.load(there, digest=registered)
    for name in ("manifest.json", "model.onnx", "golden.json"):
        (there / name).chmod(0o600)
        (there / name).write_bytes((other / name).read_bytes())
    with pytest.raises(
        BundleCorrupt, match="is not the one that was registered"
    ):
        predictor.load(there, digest=registered)
