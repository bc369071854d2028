"""What the recipes reach with their defaults, measured through the served path: `python -m bench.accuracy`."""

import sys

from bench.running import Platform, platform, shared, table

CASES = [
    # data set, task, recipe, bar: test accuracy, bar: seconds of the whole job
    ("mnist", "image-classification", "cnn", 0.99, 180),
    ("mnist", "image-classification", "hog-svm", 0.97, 300),
    ("trashnet/trashnet_192x256.zip", "image-classification", "resnet", 0.80, 900),
    ("cifar10_jpg/cifar10_jpg_subset.zip", "image-classification", "resnet", 0.75, 900),
    ("rt_polarity", "text-classification", "bilstm", 0.75, None),
    ("rt_polarity", "text-classification", "tfidf", 0.76, None),
    ("chnsenticorp_htl", "text-classification", "tfidf", 0.88, None),
]


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
    return table(["data", "recipe", "split", "test accuracy", "bar", "job, seconds", "bar", "command"], rows)


def _case(running: Platform, name: str, task: str, recipe: str, bar: float, limit: int | None) -> list[str]:
    data = name.partition("/")[0]
    known = [row["name"] for row in running.run("data", "list")]
    if data not in known:
        running.run("data", "add", data, str(shared(name)), "--task", task)
    splits = running.run("data", "show", data)["splits"]
    job = running.run("train", f"{data}-{recipe}", "--task", task, "--data", data, "--recipe", recipe, "--wait")
    accuracy, seconds = job["metrics"]["accuracy"], job["result"]["seconds"]
    return [
        data,
        f"`{recipe}`",
        "/".join(str(count) for count in splits.values()),
        f"**{100 * accuracy:.2f} %**",
        f"{100 * bar:.0f} % {'met' if accuracy >= bar else 'MISSED'}",
        f"{seconds:.0f}",
        "" if limit is None else f"{limit} {'met' if seconds <= limit else 'MISSED'}",
        f"`python -m bench.accuracy {recipe}`",
    ]


if __name__ == "__main__":
    measure(sys.argv[1] if len(sys.argv) > 1 else "")
