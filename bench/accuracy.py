"""What the recipes reach with their defaults, measured through the served path: `python -m bench.accuracy`."""

import sys

from bench.running import Platform, platform, shared, table
from modelmill.tasks.base import task_named

CASES = [
    # data set, task, recipe, bar: the task's figure on the test split, bar: seconds of the whole job
    ("mnist", "image-classification", "cnn", 0.99, 180),
    ("trashnet/trashnet_192x256.zip", "image-classification", "resnet", 0.75, 600),
    ("camvid_half", "image-segmentation", "unet", 0.50, 1200),
    ("rt_polarity", "text-classification", "bilstm", 0.75, None),
    ("rt_polarity", "text-classification", "tfidf", 0.76, None),
    ("chnsenticorp_htl", "text-classification", "tfidf", 0.88, None),
]
REPAIR = [
    # recipe, folder to test on, its settings, bar: dB, above bicubic or not, bar: seconds of the whole job
    ("denoise", "BSD68", [], 28.5, False, 1200),
    ("super-resolution", "Set5", ["--set", "scale=3"], 1.5, True, 900),
]
OPTIONS = {"camvid_half": ["--set", "ignore=11"]}
"""What a data set's format has to be told."""


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
        for recipe, folder, *rest in REPAIR:
            if shared("denoise_sr") is not None and only in f"denoise_sr {recipe}":
                rows.append(_repair(running, recipe, folder, *rest))
                print("|", " | ".join(rows[-1]), "|", flush=True)
    return table(["data", "recipe", "split", "test figure", "bar", "job, seconds", "bar", "command"], rows)


def _case(running: Platform, name: str, task: str, recipe: str, bar: float, limit: int | None) -> list[str]:
    data = name.partition("/")[0]
    known = [row["name"] for row in running.run("data", "list")]
    if data not in known:
        running.run("data", "add", data, str(shared(name)), "--task", task, *OPTIONS.get(data, []))
    splits = running.run("data", "show", data)["splits"]
    job = running.run("train", f"{data}-{recipe}", "--task", task, "--data", data, "--recipe", recipe, "--wait")
    figure, seconds = task_named(task).METRIC, job["result"]["seconds"]
    reached = job["metrics"][figure]
    return [
        data,
        f"`{recipe}`",
        "/".join(str(count) for count in splits.values()),
        f"**{100 * reached:.2f} %** {figure}",
        f"{100 * bar:.0f} % {'met' if reached >= bar else 'MISSED'}",
        f"{seconds:.0f}",
        "" if limit is None else f"{limit} {'met' if seconds <= limit else 'MISSED'}",
        f"`python -m bench.accuracy {recipe}`",
    ]


def _repair(
    running: Platform, recipe: str, folder: str, settings: list[str], bar: float, above: bool, limit: int
) -> list[str]:
    data, path = f"denoise_sr-{folder}", str(shared("denoise_sr"))
    chosen = ["--set", "train=Train400_quarter", "--set", f"test={folder}"]
    running.run("data", "add", data, path, "--task", "image-to-image", *chosen)
    splits = running.run("data", "show", data)["splits"]
    job = running.run(
        "train", recipe, "--task", "image-to-image", "--data", data, "--recipe", recipe, *settings, "--wait"
    )
    metrics, seconds = job["metrics"], job["result"]["seconds"]
    reached = metrics["psnr"] - metrics["psnr_baseline"] if above else metrics["psnr"]
    words = "dB over bicubic" if above else "dB"
    return [
        data,
        f"`{recipe}`",
        "/".join(str(count) for count in splits.values()),
        f"**{reached:.2f} {words}**",
        f"{bar:g} {words} {'met' if reached >= bar else 'MISSED'}",
        f"{seconds:.0f}",
        f"{limit} {'met' if seconds <= limit else 'MISSED'}",
        f"`python -m bench.accuracy {recipe}`",
    ]


if __name__ == "__main__":
    measure(sys.argv[1] if len(sys.argv) > 1 else "")
