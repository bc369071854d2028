"""Where the shared data lie, and how the cases of a test are named."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# OpenMP's threads would spin while they wait, against the tests of the other processes. Set before
# torch is loaded, which reads it once.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# The processes that tests start would each compile all modules anew where this is set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A busy machine makes an example slow, never wrong.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """The path of something shared, such as `data/request_samples`; skips when it is not on this
    machine.
    """
    root = Path(os.environ.get("MODELMILL_SHARED", ROOT.parent / "shared"))

    def path(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(
                f"needs {root / name}; MODELMILL_SHARED says where the shared data lie"
            )
        return root / name

    return path


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long texts and bytes are named by their argument: a file's bytes may hold the time it was
    made at (WAV, zip), and every process of a parallel run must give a case the same name.
    """
    return argname if isinstance(val, bytes | str) and len(val) > 60 else None
