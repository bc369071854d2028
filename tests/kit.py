"""`make compatibility`: clients that others wrote, driven against a platform with reference models.

The acceptance kit (`kit` among the shared data) has an environment of its own, since it pins its
clients. What its tests found becomes docs/compatibility.md.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from modelmill import Client
from modelmill.errors import MillError
from tests.compatibility import Outcome, outcomes, page
from tests.platform.conftest import Platform, wait_ready
from tests.reference import home

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
PACKAGES = ("tritonclient", "grpcio", "openai", "huggingface_hub")
UNNAMED = ("grpcio-reflection",)
"""What the kit imports and its requirements leave out."""
RUN_SECONDS = 900

MODELS = (*home.GRAPHS, *home.IDENTITIES, "slow", "fails", "echo")
VARIABLES = {
    "MODEL_V2": "addsub",
    "MODEL_ADDSUB": "addsub",
    "MODEL_CLASSIFIER": "classifier",
    "MODEL_SLOW": "slow",
    "MODEL_FAILS": "fails",
    "MODEL_IMAGE_CLASSIFICATION": "colours",
    "MODEL_TEXT_CLASSIFICATION": "feelings",
    **dict.fromkeys(("MODEL_COMPLETION", "MODEL_TEXT_GENERATION"), "writer"),
    "MODEL_CHAT": "talker",
    "MODEL_OBJECT_DETECTION": "finder",
    "MODEL_IMAGE_SEGMENTATION": "painter",
    "MODEL_IMAGE_TO_IMAGE": "mender",
    "MODEL_TRANSLATION": "interpreter",
    "MODEL_QUESTION_ANSWERING": "librarian",
    "MODEL_FILL_MASK": "guesser",
    **dict.fromkeys(
        (
            "MODEL_FEATURE_EXTRACTION",
            "MODEL_SENTENCE_SIMILARITY",
            "MODEL_EMBEDDING",
        ),
        "thinker",
    ),
    **dict.fromkeys(
        ("MODEL_AUTOMATIC_SPEECH_RECOGNITION", "MODEL_ASR"), "scribe"
    ),
    "MODEL_ASR_TRANSLATE": "scribe+interpreter",
    "MODEL_AUDIO_CLASSIFICATION": "listener",
    **{
        f"MODEL_IDENTITY_{datatype}": name
        for name, datatype in home.IDENTITIES.items()
    },
    "MODEL_IDENTITY_BYTES": "echo",
}
"""What the kit calls our models; one that can't be served is left out, and its tests say so."""
EXPECTED = {
    "EXPECT_IMAGE_CLASSIFICATION": "red",
    "EXPECT_TEXT_CLASSIFICATION": "positive",
}
OPTIONS = (
    "ADMIN",
    "V1",
    "SHM",
    "REFLECTION",
    "HF_INFO",
    "REAL_MODELS",
    "EMBED_TOKENS",
    "EMBED_DIMENSIONS",
)


def python_of(kit: Path) -> Path:
    """The interpreter of the kit's own environment, made when its requirements have changed."""
    requirements = kit / "requirements.txt"
    mark = hashlib.sha256(
        requirements.read_bytes() + " ".join(UNNAMED).encode()
    ).hexdigest()
    folder = ROOT / "build" / "kit"
    python = folder / "bin" / "python"
    if not (folder / mark).exists():
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(folder)], check=True
        )
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
        ]
        subprocess.run([*install, str(requirements), *UNNAMED], check=True)
        (folder / mark).touch()
    return python


def versions(python: Path) -> dict[str, str]:
    """The versions of the clients."""
    code = (
        "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in "
        "sys.argv[1:]}))"
    )
    done = subprocess.run(
        [str(python), "-c", code, *PACKAGES],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[Platform, str]]:
    """A platform that serves every reference model it can, and the address of its gRPC server."""
    platform = Platform(
        folder / "home",
        **home.with_engine(folder / "site"),
        MODELMILL_SHARED_MEMORY="true",
        MODELMILL_PUBLIC_REFLECTION="true",
    )
    try:
        names = [
            name
            for name in MODELS
            if brought(platform.client, folder / "made", name)
        ]
        for name in names:
            platform.client.deploy(name)
        names += home.teach(platform.client, folder / "taught")
        for name in names:
            wait_ready(platform, name)
        yield platform, (platform.home / "grpc_address").read_text().strip()
    finally:
        platform.stop(signal.SIGTERM)


def brought(client: Client, folder: Path, name: str) -> bool:
    """Whether a model can be served here."""
    try:
        home.bring(client, folder, [name])
    except MillError as error:
        print(f"{name}: {error}", flush=True)
        return False
    return True


def variables(platform: Platform, grpc: str) -> dict[str, str]:
    """What the kit is told of the platform."""
    served = {row["name"] for row in platform.client.deployments()}
    told = {
        "URL": platform.url,
        "GRPC": grpc,
        "KEY": platform.client.key,
        **{
            name: model
            for name, model in VARIABLES.items()
            if served.issuperset(model.split("+"))
        },
        **EXPECTED,
        **dict.fromkeys(OPTIONS, "1"),
    }
    return {f"KIT_{name}": value for name, value in told.items()}


def run(kit: Path, folder: Path) -> list[Outcome]:
    """Every test of the kit and what became of it."""
    python = python_of(kit)
    with serving(folder) as (platform, grpc):
        told = variables(platform, grpc)
        report = folder / "report.xml"
        ask(python, kit, told, report)
    return outcomes(report)


def ask(python: Path, kit: Path, told: dict[str, str], report: Path) -> None:
    """Run the kit; its failures are in the report, not in the exit status."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KIT_", "PYTHON", "PYTEST"))
    }
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-rfE",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-o", "junit_family=xunit2", f"--junitxml={report}"]
    env = {**plain, **told, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=kit, env=env, timeout=RUN_SECONDS, check=False
    )
    if not report.exists():
        raise MillError(
            f"the kit ended with status {done.returncode} and left no report"
        )


def main() -> int:
    """Run the kit and write the page; 0 when nothing failed, 2 when the kit is not on this
    machine.
    """
    kit = (
        Path(os.environ.get("MODELMILL_SHARED", ROOT.parent / "shared")) / "kit"
    )
    if not kit.exists():
        print(
            f"{kit} is not there: MODELMILL_SHARED says where the shared data lie",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        found = run(kit, Path(folder))
    PAGE.write_text(page(found, versions(python_of(kit))), "utf-8")
    failed = [
        f"{outcome.module}.{outcome.case}"
        for outcome in found
        if outcome.state == "failed"
    ]
    print(
        f"{len(found)} tests, {len(failed)} failed; {PAGE.relative_to(ROOT)} is written"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
