"""What the recipes reach with their defaults, measured through the served path: `python -m bench.accuracy`."""

import sys
import tempfile
import zipfile
from pathlib import Path

from bench.running import Platform, platform, shared, table
from modelmill import Client

CASES = [
    # data set, task, recipe, bar: test accuracy (or what FIGURES says), bar: seconds of the whole job
    ("mnist", "image-classification", "cnn", 0.99, 180),
    ("trashnet/trashnet_192x256.zip", "image-classification", "resnet", 0.75, 600),
    ("rt_polarity", "text-classification", "bilstm", 0.75, None),
    ("rt_polarity", "text-classification", "tfidf", 0.76, None),
    ("chnsenticorp_htl", "text-classification", "tfidf", 0.88, None),
    ("omniglot_small1/images_background_small1.zip", "image-feature-extraction", "embed", 0.80, 600),
]
FIGURES = {"image-feature-extraction": "recall_at_1"}
"""What is measured, where it is not accuracy."""
FACES = "orl_faces/orl_faces.zip"


def measure(only: str = "") -> str:
    """Train every case whose data are here; returns a Markdown table."""
    rows = []
    with platform() as running:
        for name, task, recipe, bar, limit in CASES:
            path = shared(name)
            if path is None or only not in f"{name} {recipe}":
                continue
            rows.append(_case(running, name, task, recipe, bar, limit))
            print("|", " | ".join(rows[-1]), "|", flush=True)
        if shared(FACES) is not None and only in f"{FACES} embed index":
            rows.append(_faces(running, 0.85, 600))
            print("|", " | ".join(rows[-1]), "|", flush=True)
    return table(["data", "recipe", "split", "test accuracy", "bar", "job, seconds", "bar", "command"], rows)


def _case(running: Platform, name: str, task: str, recipe: str, bar: float, limit: int | None) -> list[str]:
    data = name.partition("/")[0]
    known = [row["name"] for row in running.run("data", "list")]
    if data not in known:
        running.run("data", "add", data, str(shared(name)), "--task", task)
    splits = running.run("data", "show", data)["splits"]
    job = running.run("train", f"{data}-{recipe}", "--task", task, "--data", data, "--recipe", recipe, "--wait")
    figure = FIGURES.get(task, "accuracy")
    return _row(data, recipe, splits, figure, job["metrics"][figure], bar, job["result"]["seconds"], limit)


def _faces(running: Platform, bar: float, limit: int) -> list[str]:
    """Trained on 20 persons; 5 pictures of each of the 20 others are enrolled in an index, their other 5 searched."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(str(shared(FACES))) as archive:
            for name in archive.namelist():
                person, number = Path(name).parent.name, Path(name).stem
                if person.startswith("s") and number.isdecimal():
                    known = int(person[1:]) <= 20
                    enrolled = "enrolled" if int(number) <= 5 else "searched"
                    for place in ["set/train" if known else "set/test", *([] if known else [enrolled])]:
                        target = folder / place / person / Path(name).name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(archive.read(name))
        running.run("data", "add", "faces", str(folder / "set"), "--task", "image-feature-extraction")
        job = running.run("train", "faces", "--task", "image-feature-extraction", "--data", "faces", "--wait")
        running.run("deploy", "faces", "--wait")
        running.run("index", "create", "people", "--model", "faces")
        running.run("index", "add", "people", str(folder / "enrolled"))
        paths = sorted((folder / "searched").rglob("*.pgm"))
        with Client(home=running.home) as client:
            right = [client.search_index("people", path, k=1)[0]["label"] == path.parent.name for path in paths]
    seconds, splits = job["result"]["seconds"], {"enrolled": 100, "searched": len(paths)}
    return _row("orl_faces", "embed", splits, "recall_at_1, index", sum(right) / len(right), bar, seconds, limit)


def _row(
    data: str,
    recipe: str,
    splits: dict[str, int],
    figure: str,
    value: float,
    bar: float,
    seconds: float,
    limit: int | None,
) -> list[str]:
    return [
        data,
        f"`{recipe}`",
        "/".join(str(count) for count in splits.values()),
        f"{'' if figure == 'accuracy' else f'{figure} '}**{100 * value:.2f} %**",
        f"{100 * bar:.0f} % {'met' if value >= bar else 'MISSED'}",
        f"{seconds:.0f}",
        "" if limit is None else f"{limit} {'met' if seconds <= limit else 'MISSED'}",
        f"`python -m bench.accuracy {data if figure != 'accuracy' else recipe}`",
    ]


if __name__ == "__main__":
    measure(sys.argv[1] if len(sys.argv) > 1 else "")
