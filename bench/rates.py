"""Requests a second and latencies: of the CNN in each protocol, of heavy networks against their
engine's limit.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np

from bench import networks
from bench.limit import Limit
from bench.measuring import Figures, Target, interleaved
from bench.subject import Bench, Row

CORES = len(os.sched_getaffinity(0))
HEAVY = 5
"""Networks that answer a few dozen times a second are measured for so many times longer."""


def told(got: Figures) -> str:
    """Figures as the table shows them."""
    failed = f", **{got.failed} failed**" if got.failed else ""
    core = f", {got.cpu:,.0f} µs of a core each" if got.cpu else ""
    return f"**{got.rps:,.0f}/s**, p50 {got.p50:.2f} ms, p99 {got.p99:.2f} ms{core}{failed}"


def renamed(target: Target, name: str) -> Target:
    """The same request under another name."""
    return Target(
        name,
        target.url,
        target.body,
        target.headers,
        target.read,
        target.server,
    )


def cnn(bench: Bench) -> list[Row]:
    """V2 binary at 1, 32 and 128 connections beside every peer's fastest format."""
    ours = bench.cnn()["binary"]
    rows = [
        Row(name, f"skipped: {reason}")
        for name, reason in bench.peers.missing.items()
    ]
    for connections in (1, 32, 128):
        got = interleaved(
            [ours, *bench.peers.fastest.values()],
            connections,
            bench.told.seconds,
            bench.told.repeats,
        )
        mine = got[ours.name]
        what = f"{bench.title}, V2 binary, {connections} connection{'s' * (connections > 1)}"
        one = connections == 1
        rows.append(
            Row(
                what,
                told(mine),
                "p50 <= 0.20 ms" if one else "",
                mine.p50 <= 0.20 if one else None,
            )
        )
        if connections == 32:
            rows += [
                _ratio(f"{what}: of {title}", mine, got.get(title), bar)
                for title, bar in (
                    ("Triton, V2 binary", 1.8),
                    ("bare echo", 0.6),
                )
            ]
        rows += [
            Row(f"&nbsp;&nbsp;{name}, {connections}", told(one))
            for name, one in got.items()
            if name != ours.name
        ]
    return rows


def _ratio(what: str, mine: Figures, other: Figures | None, bar: float) -> Row:
    if other is None or not other.rps:
        return Row(
            what, "skipped: it could not be measured here", f">= {bar} x"
        )
    ratio = mine.rps / other.rps
    return Row(what, f"**{ratio:.2f} x**", f">= {bar} x", ratio >= bar)


def v2_json(bench: Bench) -> list[Row]:
    """V2 in JSON both ways at 32 connections."""
    contestants = [bench.cnn()["json"]]
    if "triton" in bench.peers.running:
        contestants.append(
            renamed(
                bench.peers.running["triton"].targets["json"], "Triton, V2 JSON"
            )
        )
    got = interleaved(contestants, 32, bench.told.seconds, bench.told.repeats)
    mine = got[bench.subject.name]
    rows = [
        Row(
            f"{bench.title}, V2 JSON, 32 connections",
            told(mine),
            ">= 9,000/s",
            mine.rps >= 9000,
        )
    ]
    return rows + [
        Row(f"&nbsp;&nbsp;{name}, 32", told(one))
        for name, one in got.items()
        if one is not mine
    ]


def grpc(bench: Bench) -> list[Row]:
    """V2 over gRPC, 32 connections with one call in flight on each."""
    ours = bench.cnn().get("grpc")
    if ours is None:
        return [
            Row(
                f"{bench.title}, V2 gRPC, 32 connections",
                "skipped: the server tells no gRPC address",
                ">= Triton",
            )
        ]
    contestants = [ours]
    if "triton" in bench.peers.running:
        contestants.append(
            renamed(
                bench.peers.running["triton"].targets["grpc"], "Triton, V2 gRPC"
            )
        )
    got = interleaved(contestants, 32, bench.told.seconds, bench.told.repeats)
    mine, other = got[ours.name], got.get("Triton, V2 gRPC")
    met = mine.rps >= other.rps if other else None
    rows = [
        Row(
            f"{bench.title}, V2 gRPC, 32 connections",
            told(mine),
            ">= Triton",
            met,
        )
    ]
    return rows + (
        [Row("&nbsp;&nbsp;Triton, V2 gRPC, 32", told(other))] if other else []
    )


def resnet50(bench: Bench) -> list[Row]:
    """ResNet-50 at 224 against ONNX Runtime in a loop."""
    return _heavy(bench, "resnet50", "ResNet-50")


def bert(bench: Bench) -> list[Row]:
    """A BERT of 6 layers of 384 at 128 tokens against ONNX Runtime in a loop."""
    return _heavy(bench, "bert", "BERT 6 x 384")


def bert_base(bench: Bench) -> list[Row]:
    """A BERT of 12 layers of 768, likewise; slow on few cores, so only when it is asked for."""
    return _heavy(bench, "bert-base", "BERT 12 x 768")


def _heavy(bench: Bench, network: str, title: str) -> list[Row]:
    path = networks.network(network, bench.told.cache / "networks")
    ours = bench.mill.deploy(network, replicas=1, threads=CORES)["binary"]
    limit = Limit(
        f"{title} in process",
        [str(path), "--network", network, "--threads", str(CORES)],
    )
    got = interleaved(
        [limit, ours],
        32,
        bench.told.seconds * HEAVY,
        bench.told.repeats,
        warmup=3,
    )
    bench.mill.client.undeploy(network)
    return _against(title, got[ours.name], limit, got[limit.name], 0.95)


def _against(
    title: str, mine: Figures, limit: Limit, most: Figures, bar: float
) -> list[Row]:
    ratio, spread = (
        mine.rps / most.rps,
        mine.p99 / mine.p50 if mine.p50 else 0.0,
    )
    limited = f"{most.rps:.1f}/s (batch {limit.batch}, {most.cpu:,.0f} µs of a core each)"
    return [
        Row(f"{title}, 32 connections", told(mine)),
        Row(
            f"{title}: of the limit in process",
            f"**{ratio:.2f} x** of {limited}",
            f">= {bar} x",
            ratio >= bar,
        ),
        Row(
            f"{title}: p99 / p50",
            f"**{spread:.2f}**",
            "<= 1.2",
            0 < spread <= 1.2,
        ),
    ]


def openvino(bench: Bench) -> list[Row]:
    """OpenVINO in bf16 against ONNX Runtime in fp32, both served, on ResNet-50 and BERT."""
    if importlib.util.find_spec("openvino") is None:
        return [
            Row(
                "OpenVINO, bf16",
                "skipped: not installed (pip install 'modelmill[openvino]')",
                ">= 1.8 x",
            )
        ]
    rows = []
    for network, title in (("resnet50", "ResNet-50"), ("bert", "BERT 6 x 384")):
        path = networks.network(network, bench.told.cache / "networks")
        precision = bench.told.precision
        options = {"replicas": 1, "threads": CORES}
        plain = renamed(
            bench.mill.deploy(network, f"{network}-onnx", **options)["binary"],
            "onnx",
        )
        name = f"{network}-openvino"
        fast = bench.mill.deploy(
            network, name, engine="openvino", precision=precision, **options
        )["binary"]
        words = [
            str(path),
            "--network",
            network,
            "--threads",
            str(CORES),
            "--engine",
            "openvino",
        ]
        limit = Limit(f"{title} in process", [*words, "--precision", precision])
        got = interleaved(
            [plain, fast, limit],
            32,
            bench.told.seconds * HEAVY,
            bench.told.repeats,
            warmup=3,
        )
        for one in (f"{network}-onnx", name):
            bench.mill.client.undeploy(one)
        rows.append(
            _ratio(
                f"{title}: OpenVINO {precision} of ONNX Runtime fp32, both served",
                got[fast.name],
                got["onnx"],
                1.8,
            )
        )
        rows += _against(
            f"{title}, OpenVINO {precision}",
            got[fast.name],
            limit,
            got[limit.name],
            0.95,
        )
    return rows


def task(bench: Bench) -> list[Row]:
    """A JPEG of 1280 x 720 to a ResNet of 18 layers at 224, from file to label."""
    mill, folder = bench.mill, Path(bench.mill.home).parent
    data, jpeg = _photographs(folder)
    mill.client.add_data("photographs", data, task="image-classification")
    settings = {
        "height": 224,
        "width": 224,
        "channels": 64,
        "blocks": 2,
        "epochs": 1,
        "batch_size": 8,
    }
    mill.client.train(
        "photographs",
        task="image-classification",
        data="photographs",
        recipe="resnet",
        settings=settings,
        wait=True,
    )
    digest = mill.client.model("photographs")["digest"]
    mill.client.deploy("photographs", wait=True, replicas=1, threads=CORES)
    auth = {"Authorization": f"Bearer {mill.key}"}
    ours = Target(
        mill.name,
        f"{mill.client.url}/models/photographs",
        jpeg.read_bytes(),
        auth,
        server=mill,
    )
    bundle = mill.home / "artifacts" / "sha256" / digest[:2] / digest
    limit = Limit(
        "task in process",
        [
            "--bundle",
            str(bundle),
            "--input",
            str(jpeg),
            "--threads",
            str(CORES),
        ],
    )
    got = interleaved(
        [limit, ours],
        32,
        bench.told.seconds * HEAVY,
        bench.told.repeats,
        warmup=3,
    )
    mill.client.undeploy("photographs")
    return _against(
        "JPEG 1280x720 to a ResNet-18 at 224",
        got[ours.name],
        limit,
        got[limit.name],
        0.9,
    )[:2]


def _photographs(folder: Path) -> tuple[Path, Path]:
    """A data set of two classes of small pictures, and one large JPEG, as hard to decode as
    photographs.
    """
    from PIL import Image

    random, data = np.random.default_rng(5), folder / "photographs"
    for label in ("one", "two"):
        (data / label).mkdir(parents=True)
        for number in range(24):
            noise = random.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(noise).resize(
                (256, 256), Image.Resampling.BICUBIC
            ).save(data / label / f"{number}.png")
    large = Image.fromarray(
        random.integers(0, 256, (90, 160, 3), np.uint8)
    ).resize((1280, 720), Image.Resampling.BICUBIC)
    grain = random.normal(0, 6, (720, 1280, 3))
    pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "large.jpg", quality=85)
    return data, folder / "large.jpg"
