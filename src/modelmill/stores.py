"""The stores of a home, over one database; the supervisor and each gateway open their own."""

import hashlib
import os
from pathlib import Path

from modelmill.artifacts import Artifacts
from modelmill.control.datasets import Datasets
from modelmill.control.db import Database
from modelmill.control.deployments import Deployments
from modelmill.control.indexes import Indexes
from modelmill.control.jobs import Jobs
from modelmill.control.kinds import JobStores
from modelmill.control.registry import Registry
from modelmill.errors import Conflict
from modelmill.settings import Settings

SOCKET_PATH_LIMIT = 80
"""Bytes of the folder's path; with a name such as `gateway-4194304.gossip` it has to fit 107
(unix(7)).
"""


class Stores:
    """Data sets, models, jobs, deployments and indexes of a home."""

    def __init__(self, settings: Settings) -> None:
        home = settings.home
        self.settings = settings
        self.database = Database(
            settings.database or f"sqlite:///{home / 'modelmill.db'}"
        )
        self.artifacts = Artifacts(home / "artifacts")
        self.datasets = Datasets(self.database, self.artifacts)
        self.registry = Registry(self.database, self.artifacts)
        self.of_jobs = JobStores(
            self.database, self.datasets, self.registry, self.artifacts, home
        )
        self.jobs = Jobs(self.of_jobs)
        self.deployments = Deployments(self.database, self.registry)
        self.indexes = Indexes(home / "indexes")


def run_folder(home: Path) -> Path:
    """The folder of the sockets: `run` in the home, or a private one in XDG_RUNTIME_DIR or /tmp
    when that path is too long for a socket. Raises `Conflict` when it belongs to another user.
    """
    folder = home / "run"
    if len(os.fsencode(folder)) > SOCKET_PATH_LIMIT:
        mark = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
        folder = (
            Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")  # noqa: S108
            / f"modelmill-{os.getuid()}-{mark}"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise Conflict(f"{folder} belongs to another user")
    folder.chmod(0o700)
    return folder
