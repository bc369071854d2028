"""Every engine, by a small model of its own: opens a folder, runs named arrays of any batch, and
tells a bad model from a bad input.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from modelmill import plugins
from modelmill.engines.base import (
    DATATYPES,
    NUMPY,
    Engine,
    engine_for,
    engine_named,
    sample_rows,
)
from modelmill.errors import (
    BundleCorrupt,
    InvalidInput,
    ModelFailed,
    NotFound,
    NotInstalled,
)

ENGINES = plugins.names("engines")
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(params=ENGINES)
def name(request):
    return request.param


@pytest.fixture
def engine(name):
    try:
        return engine_named(name)
    except NotInstalled as missing:
        pytest.skip(str(missing))


@pytest.fixture
def sample(engine, tmp_path):
    """The engine's own small model, of its first data type that has numbers after the point."""
    wanted = [
        one for one in ("FP32", *engine.DATATYPES) if one in engine.DATATYPES
    ]
    return engine.sample(tmp_path, wanted[0])


def session_of(engine, folder, sample, threads=1):
    signature = sample.inputs, sample.outputs
    return engine.open(folder, threads, signature=signature)


def repeated(arrays, rows):
    """The first `rows` rows of the arrays, over and over."""
    return {
        name: np.concatenate([array] * (rows // len(array) + 1))[:rows]
        for name, array in arrays.items()
    }


def agree(got, wanted):
    assert got.keys() == wanted.keys()
    for name, array in got.items():
        assert array.dtype == wanted[name].dtype
        assert array.shape == wanted[name].shape
        if array.dtype == object:
            assert array.tolist() == wanted[name].tolist()
        else:
            one, other = (
                array.astype(np.float64),
                wanted[name].astype(np.float64),
            )
            np.testing.assert_allclose(one, other, **ROUNDING)


def test_what_it_offers_is_said(engine):
    assert engine.READS
    assert engine.PRECISIONS
    assert set(engine.DATATYPES) <= set(DATATYPES)
    assert not set(engine.VARIANTS) & set(engine.PRECISIONS)


def test_it_reads_its_own_model_and_no_empty_folder(engine, tmp_path):
    assert not engine.reads(tmp_path)
    engine.sample(tmp_path, engine.DATATYPES[0])
    assert engine.reads(tmp_path)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_named_arrays_go_in_and_come_out(engine, sample, tmp_path, rows):
    session = session_of(engine, tmp_path, sample)
    agree(
        session.run(repeated(sample.given, rows)),
        repeated(sample.answered, rows),
    )


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_that_it_claims_goes_in_and_comes_out(
    engine, tmp_path, datatype
):
    if datatype not in engine.DATATYPES:
        pytest.skip(f"the engine does not offer {datatype}")
    sample = engine.sample(tmp_path, datatype)
    kind = np.dtype(NUMPY.get(datatype, object))
    assert sample.inputs[0].datatype == datatype
    assert sample.given[sample.inputs[0].name].dtype == kind
    session = session_of(engine, tmp_path, sample)
    agree(session.run(sample.given), sample.answered)
    frozen = {
        name: np.asfortranarray(one) for name, one in sample.given.items()
    }
    for array in frozen.values():
        array.flags.writeable = False  # as a tensor from a request is
    agree(session.run(frozen), sample.answered)


def test_no_rows_are_answered_with_no_rows(engine, sample, tmp_path):
    session = session_of(engine, tmp_path, sample)
    agree(session.run(repeated(sample.given, 0)), repeated(sample.answered, 0))


def test_threads_change_nothing(engine, sample, tmp_path):
    for threads in (1, 2):
        session = session_of(engine, tmp_path, sample, threads)
        agree(session.run(sample.given), sample.answered)


def strange(sample):
    """Arrays that the sample does not take: other names, none, another type, other axes."""
    first, *others = sample.given
    array = sample.given[first]
    other = {"BYTES": np.float32}.get(sample.inputs[0].datatype, np.complex64)
    yield {
        f"{first}_other": array,
        **{name: sample.given[name] for name in others},
    }
    yield {}
    yield {**sample.given, first: np.zeros(array.shape, other)}
    yield {**sample.given, first: array[..., None]}


@pytest.mark.parametrize("how", range(4))
def test_arrays_of_another_signature_fail_in_words(
    engine, sample, tmp_path, how
):
    session = session_of(engine, tmp_path, sample)
    with pytest.raises(ModelFailed, match="the model failed"):
        session.run(list(strange(sample))[how])
    agree(
        session.run(sample.given), sample.answered
    )  # and the session lives on


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "garbage"])
def test_a_file_that_is_no_model_is_corrupt(engine, sample, tmp_path, how):
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        content = {"cut": data[: len(data) // 2], "garbage": b"\xff" * 64}
        path.write_bytes(content.get(how, b""))
        if how == "missing":
            path.unlink()
    with pytest.raises(BundleCorrupt):
        session_of(engine, tmp_path, sample)


def test_a_device_that_it_can_not_use_is_refused(engine, sample, tmp_path):
    with pytest.raises(InvalidInput, match="abacus"):
        engine.open(
            tmp_path, 1, "abacus", signature=(sample.inputs, sample.outputs)
        )


@pytest.mark.parametrize("precision", ["int3", "FP32", "a precision"])
def test_a_precision_that_it_does_not_offer_is_refused_with_those_it_does(
    engine, sample, tmp_path, precision
):
    signature = sample.inputs, sample.outputs
    with pytest.raises(
        InvalidInput, match=rf"{precision}.*{engine.PRECISIONS[0]}"
    ):
        engine.open(tmp_path, 1, precision=precision, signature=signature)


def test_a_variant_that_the_bundle_lacks_is_refused(engine, tmp_path):
    engine.sample(tmp_path, engine.DATATYPES[0])
    for variant in engine.VARIANTS:
        with pytest.raises(InvalidInput, match=f"without weights in {variant}"):
            engine.place_of(tmp_path, variant)
    assert engine.place_of(tmp_path, engine.PRECISIONS[0]) == tmp_path


def test_a_signature_is_read_or_refused_in_words(engine, sample, tmp_path):
    if type(engine).signature is Engine.signature:
        with pytest.raises(InvalidInput, match="without a manifest"):
            engine.signature(tmp_path)
    else:
        assert engine.signature(tmp_path) == (sample.inputs, sample.outputs)


def test_generated_texts_are_streamed_or_refused_with_a_clear_error(
    engine, sample, tmp_path
):
    if engine.writes():
        with pytest.raises(
            (BundleCorrupt, InvalidInput)
        ):  # the sample writes nothing
            engine.writer(tmp_path, 1, 4)
    else:
        with pytest.raises(InvalidInput, match="token by token"):
            engine.writer(tmp_path, 1, 4)


def test_an_answer_is_not_changed_by_the_next(engine, sample, tmp_path):
    session = session_of(engine, tmp_path, sample)
    given = {name: array.copy() for name, array in sample.given.items()}
    first = session.run(given)
    session.run({name: array[::-1].copy() for name, array in given.items()})
    agree(first, sample.answered)
    agree(given, sample.given)


def test_threads_can_share_a_session(engine, sample, tmp_path):
    session = session_of(engine, tmp_path, sample)

    def check(rows):
        got = session.run(repeated(sample.given, rows))
        agree(got, repeated(sample.answered, rows))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, [i % 5 + 1 for i in range(40)]))


CHILD = """
import json, os, pathlib, sys, time
import numpy as np
from modelmill.engines.base import engine_named

name, folder, threads = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
engine = engine_named(name)
datatype = "FP32" if "FP32" in engine.DATATYPES else engine.DATATYPES[0]
sample = engine.sample(folder, datatype)
session = engine.open(folder, threads, signature=(sample.inputs, sample.outputs))
def rows(count):
    return {name: np.concatenate([one] * (count // len(one) + 1))[:count] for name, one in sample.given.items()}
"""
BUSY = (
    CHILD
    + """
allowed = os.sched_getaffinity(0)
batch = rows(2000)
def used():
    stats = [(task, open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()) for task in tasks()]
    return {task: int(stat[11]) + int(stat[12]) for task, stat in stats}
def tasks():
    return os.listdir("/proc/self/task")
before = used()
until = time.process_time() + 1
runs = 0
while time.process_time() < until and runs < 20_000:
    session.run(batch)
    runs += 1
spent = {task: ticks - before.get(task, 0) for task, ticks in used().items()}
busy = sum(ticks > 0.1 * sum(spent.values()) for ticks in spent.values())
pinned = [task for task in tasks() if os.sched_getaffinity(int(task)) != allowed]
print(json.dumps({"busy": busy, "pinned": pinned}))
"""
)
MANY_SIZES = (
    CHILD
    + """
random, pages = np.random.default_rng(0), []
for _ in range(4):
    for size in random.permutation(256):
        session.run(rows(int(size) + 1))
    pages.append(int(pathlib.Path("/proc/self/statm").read_text().split()[1]))
print((pages[3] - pages[1]) * 4096 / 2**20)
"""
)


def child(code, name, folder, threads):
    run = [sys.executable, "-c", code, name, str(folder), str(threads)]
    done = subprocess.run(run, check=True, capture_output=True, timeout=200)
    return json.loads(done.stdout)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_threads_work_than_it_was_given(
    engine, name, tmp_path, threads
):
    found = child(BUSY, name, tmp_path, threads)
    assert found["pinned"] == []
    assert found["busy"] in (
        {1} if threads == 1 or os.cpu_count() == 1 else {1, 2}
    )


def test_batches_of_many_sizes_leak_no_memory(engine, name, tmp_path):
    grown = child(MANY_SIZES, name, tmp_path, 1)
    assert grown < 16, (
        f"{grown:.0f} MiB more after every size was seen twice again"
    )


def test_an_unknown_engine_is_answered_with_those_that_exist():
    with pytest.raises(NotFound, match="onnx"):
        engine_named("tensorrt9")


def test_a_plugin_without_an_engine_says_what_it_needs(tmp_path, monkeypatch):
    (tmp_path / "hollow.py").write_text("ENGINE = 'none'\n")
    package = plugins._package("engines")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    plugins.names.cache_clear()
    try:
        with pytest.raises(
            InvalidInput, match=r"'hollow' is not an engine.*ENGINE"
        ):
            engine_named("hollow")
    finally:
        monkeypatch.undo()
        plugins.names.cache_clear()


def test_an_engine_that_does_not_read_a_model_is_answered_with_those_that_do(
    tmp_path,
):
    with pytest.raises(
        InvalidInput, match=r"reads model.onnx.*none that is installed"
    ):
        engine_for("onnx", tmp_path)
    engine_named("onnx").sample(tmp_path, "FP32")
    assert engine_for("onnx", tmp_path) is engine_named("onnx")


def test_an_engine_that_writes_nothing_is_refused_where_answers_grow(
    tmp_path, monkeypatch
):
    engine_named("onnx").sample(tmp_path, "FP32")
    monkeypatch.setattr(type(engine_named("onnx")), "writer", Engine.writer)
    with pytest.raises(
        InvalidInput, match=r"token by token runs on .*, not on onnx"
    ):
        engine_for("onnx", tmp_path, writes=True)


def test_every_datatype_has_one_numpy_type_and_small_rows():
    assert len({np.dtype(kind) for kind in NUMPY.values()}) == len(NUMPY)
    for datatype in DATATYPES:
        assert sample_rows(datatype).shape == (2, 3)
