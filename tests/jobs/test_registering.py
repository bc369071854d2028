"""Bundles that are brought from elsewhere: what is refused before it is unpacked."""

import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper

from modelmill import bundle, predictor
from modelmill.errors import InvalidInput, MillError, StorageFull, TooLarge
from modelmill.importers import bundle as importing
from modelmill.jobs import registering
from modelmill.types import JobSpec
from tests.helpers.bundles import a_manifest, picture_bundle
from tests.helpers.text_bundles import vector_bundle


class Silent:
    def stage(self, message):
        pass


def zipped(folder, target):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, str(path.relative_to(folder)))
    return target


def bomb(tmp_path, size):
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "model.onnx").write_bytes(bytes(size))
    bundle.seal(draft, a_manifest(), tmp_path / "sealed")
    return zipped(tmp_path / "sealed", tmp_path / "bomb.zip")


def register(upload, tmp_path, **settings):
    spec = JobSpec(
        job=1,
        kind="register",
        folder=str(tmp_path / "job"),
        threads=1,
        bundle=str(upload),
        settings=settings,
    )
    return registering.register(
        spec, Silent(), SimpleNamespace(requested=False)
    )


def test_a_sound_bundle_is_taken(tmp_path):
    upload = zipped(picture_bundle(tmp_path / "sealed"), tmp_path / "sound.zip")
    assert register(upload, tmp_path)["bundle"]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    upload = bomb(tmp_path, 8 << 20)
    monkeypatch.setattr(importing, "UNPACKED_BYTES", 1 << 20)
    monkeypatch.setattr(shutil, "copyfileobj", None)  # nothing may be unpacked
    with pytest.raises(
        TooLarge, match=r"unpacks to 8 MiB: .* may unpack to 1 MiB"
    ):
        register(upload, tmp_path)
    assert list((tmp_path / "job").iterdir()) == []


def test_a_bundle_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "MEMBERS", 0)
    with pytest.raises(TooLarge, match="names 1 files: at most 0 are taken"):
        register(bomb(tmp_path, 10), tmp_path)
    assert list((tmp_path / "job").iterdir()) == []


def test_a_bundle_that_the_disk_has_no_room_for_is_refused(
    tmp_path, monkeypatch
):
    upload = bomb(tmp_path, 2 << 20)
    usage = SimpleNamespace(free=importing.FREE_BYTES + (1 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageFull, match="has room for 1 MiB"):
        register(upload, tmp_path)
    assert list((tmp_path / "job").iterdir()) == []


def test_what_is_refused_half_unpacked_leaves_nothing(tmp_path):
    sealed = tmp_path / "sealed"
    bomb(tmp_path, 10)
    (sealed / "model.onnx").chmod(0o600)
    (sealed / "model.onnx").write_bytes(b"changed")
    with pytest.raises(InvalidInput, match="was changed"):
        register(zipped(sealed, tmp_path / "changed.zip"), tmp_path)
    assert list((tmp_path / "job").iterdir()) == []


def items(tmp_path, *labels):
    """The vectors of an index, a row for each label."""
    path = tmp_path / "items.npz"
    vectors = np.eye(4, dtype=np.float32)[: len(labels)]
    np.savez(path, vectors=vectors, labels=np.array(labels))
    how = {"source": str(vector_bundle(tmp_path / "sealed")), "k": 1}
    return path, {**how, "index": "faces", "model": "eyes:1"}


def test_a_classifier_is_made_of_the_items_of_an_index(tmp_path):
    upload, how = items(tmp_path, "ann", "bob", "ann")
    register(upload, tmp_path, **how)
    assert bundle.open_bundle(tmp_path / "job" / "bundle").labels == [
        "ann",
        "bob",
    ]


def test_a_classifier_of_one_label_is_refused_and_leaves_nothing(tmp_path):
    upload, how = items(tmp_path, "ann", "ann")
    with pytest.raises(InvalidInput, match="needs at least 2"):
        register(upload, tmp_path, **how)
    assert list((tmp_path / "job").iterdir()) == []


def test_a_model_that_can_not_be_opened_leaves_nothing(tmp_path):
    upload = tmp_path / "model.onnx"
    upload.write_bytes(b"no network")
    with pytest.raises(MillError):
        register(upload, tmp_path)
    assert list((tmp_path / "job").iterdir()) == []


def test_a_bundle_that_answers_otherwise_than_recorded_leaves_nothing(tmp_path):
    sealed = picture_bundle(tmp_path / "sealed")
    draft = tmp_path / "again"
    shutil.copytree(sealed, draft)
    (draft / "manifest.json").unlink()
    golden = (draft / "golden.json").read_text()
    (draft / "golden.json").write_text(golden.replace("bright", "dim"))
    bundle.seal(draft, a_manifest(), tmp_path / "other")
    with pytest.raises(InvalidInput, match="golden input 1"):
        register(zipped(tmp_path / "other", tmp_path / "other.zip"), tmp_path)
    assert list((tmp_path / "job").iterdir()) == []


@pytest.mark.parametrize(
    ("operator", "says"),
    [
        ("Neg", "calls share batches: the rows of a batch are independent"),
        ("CumSum", "calls are answered one at a time: rows of a batch depend"),
    ],
)
def test_a_bare_network_gets_a_card_that_says_whether_calls_share_batches(
    operator, says, tmp_path
):
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [0])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node(
                operator, ["x", "axis"][: 1 + (operator != "Neg")], ["y"]
            )
        ],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 3])],
        [axis],
    )
    upload = tmp_path / "model.onnx"
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    upload.write_bytes(model.SerializeToString())
    register(upload, tmp_path)
    made = bundle.open_bundle(tmp_path / "job" / "bundle")
    assert made.batches.startswith(says)
    card = (tmp_path / "job" / "bundle" / "README.md").read_text("utf-8")
    assert f"- {made.batches}" in card
    assert "input `x`: FP32 [-1, 3]" in card


def test_a_bundle_that_is_brought_again_stays_the_same(tmp_path):
    upload = zipped(picture_bundle(tmp_path / "sealed"), tmp_path / "first.zip")
    first = register(upload, tmp_path)["bundle"]
    again = zipped(tmp_path / "job" / "bundle", tmp_path / "again.zip")
    shutil.rmtree(tmp_path / "job")
    assert register(again, tmp_path)["bundle"] == first


@pytest.fixture
def program(tmp_path):
    """The file of an exported program from x [-1, 3] to y."""
    pytest.importorskip("torch")
    from modelmill.engines.torch import ENGINE

    ENGINE.sample(tmp_path, "FP32")
    return tmp_path / "model.pt2"


def test_a_program_of_torch_is_taken_from_those_who_trust_it(program, tmp_path):
    assert register(program, tmp_path, trust=True)["task"] == ""
    model = predictor.load(tmp_path / "job" / "bundle")
    assert (model.manifest.engine, model.manifest.trusted) == ("torch", True)
    assert [spec.shape for spec in model.manifest.inputs] == [[-1, 3]]
    answer = model.infer({"x": np.ones((4, 3), np.float32)})["y"]
    assert answer.shape == (4, 3)


def test_a_program_of_torch_is_not_even_looked_at_by_others(
    program, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.export.load", None)
    with pytest.raises(InvalidInput, match=r"model.pt2.*may run code.*--trust"):
        register(program, tmp_path)
    assert list((tmp_path / "job").iterdir()) == []


def test_a_bundle_can_not_vouch_for_itself(program, tmp_path, monkeypatch):
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "model.pt2").write_bytes(program.read_bytes())
    manifest = a_manifest(task="", engine="torch", trusted=True)
    bundle.seal(draft, manifest, tmp_path / "sealed")
    upload = zipped(tmp_path / "sealed", tmp_path / "sealed.zip")
    monkeypatch.setattr("torch.export.load", None)
    with pytest.raises(InvalidInput, match=r"'torch' may run code.*--trust"):
        register(upload, tmp_path)
    assert list((tmp_path / "job").iterdir()) == []


def test_no_classifier_is_made_from_vectors_of_another_engine(tmp_path):
    (tmp_path / "draft").mkdir()
    manifest = a_manifest(engine="torch", trusted=True)
    bundle.seal(tmp_path / "draft", manifest, tmp_path / "sealed")
    vectors, labels = np.eye(2, dtype=np.float32), np.array(["a", "b"])
    np.savez(tmp_path / "items.npz", vectors=vectors, labels=labels)
    source = {
        "source": str(tmp_path / "sealed"),
        "k": 1,
        "model": "m",
        "index": "i",
    }
    with pytest.raises(InvalidInput, match=r"from model\.onnx.*engine torch"):
        register(tmp_path / "items.npz", tmp_path, **source)
