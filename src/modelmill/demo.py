"""`modelmill up --demo`: a digit model from scikit-learn's scans, trained, deployed and tried."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmill.client import Client
from modelmill.errors import NotFound, NotInstalled
from modelmill.node import address_of, say
from modelmill.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "digits"
TASK = "image-classification"


def show(settings: Settings) -> None:
    """Train and deploy what is missing, printing each step, then print a command to copy."""
    url = address_of(settings)
    sample = settings.home / "demo" / "seven.png"
    with Client(url, home=settings.home) as client:
        if not sample.exists() or not _exists(client.model):
            _train(client, sample)
        _deploy(client)
        answer = client.predict(NAME, sample)[0]["output"][0]
    say(
        f"demo: {sample.name} is recognised as '{answer['label']}' (score {answer['score']:.3f}). "
        "Try it yourself:"
    )
    _say_how_to_call(settings, url, sample)


def _deploy(client: Client) -> None:
    """Serve the model, or wait until it is served: a user may have pinned another version."""
    if not _exists(client.deployment):
        client.deploy(NAME)
    current = client.deployment(NAME)
    reference = f"{current['model']}:{current['version']}"
    client.deploy(reference, name=NAME, wait=True)


def _say_how_to_call(settings: Settings, url: str, sample: Path) -> None:
    say(
        f'  curl -H "Authorization: Bearer $(cat {settings.home}/admin.key)" \\'
    )
    say(f"       --data-binary @{sample} {url}/models/{NAME}")
    say(
        "Ctrl-C stops the platform; everything is still there when it starts again."
    )


def _exists(get: Callable[[str], object]) -> bool:
    try:
        get(NAME)
    except NotFound:
        return False
    return True


def _train(client: Client, sample: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        say("demo: 1/3 adding 1,797 scanned digits as the data set 'digits'")
        _write_digits(Path(folder), sample)
        client.add_data(NAME, folder, task=TASK)
    say("demo: 2/3 training the recipe 'cnn'")
    metrics = _train_digits(client)
    say(
        f"demo:     test accuracy {metrics['accuracy']:.4f} on {metrics['items']} "
        "unseen digits"
    )
    say("demo: 3/3 deploying it")


def _train_digits(client: Client) -> dict[str, Any]:
    """The metrics of the model."""
    job = client.train(
        NAME,
        task=TASK,
        data=NAME,
        recipe="cnn",
        settings={"epochs": 30, "batch_size": 64, "learning_rate": 3e-3},
        wait=True,
        on_event=_print_epoch,
    )
    return job["metrics"]


def _print_epoch(event: dict[str, Any]) -> None:
    if event["event"] == "epoch" and event["epoch"] % 5 == 0:
        say(
            f"demo:     epoch {event['epoch']}/{event['epochs']}, validation accuracy "
            f"{event['val_accuracy']:.4f}"
        )


def _write_digits(folder: Path, sample: Path) -> None:
    """The scans as an image folder; one seven is also kept for the user to send."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise NotInstalled(
            "the demonstration needs scikit-learn: pip install 'modelmill[train]'"
        ) from error
    digits = load_digits()
    for number, (scan, label) in enumerate(
        zip(digits.images, digits.target, strict=True)
    ):
        file = folder / str(label) / f"{number:04}.png"
        _write_scan(scan, file)
        if label == 7 and not sample.exists():
            sample.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, sample)


def _write_scan(scan: "NDArray[np.float64]", file: Path) -> None:
    """A scan of values from 0 to 16 as a PNG."""
    import numpy as np
    from PIL import Image

    file.parent.mkdir(exist_ok=True)
    Image.fromarray((scan * 255 / 16).astype(np.uint8)).save(file)
