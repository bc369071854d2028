"""The contract of a cluster: start a process or actor, tell when it is lost, stop it.

Calls do not go through the handle: a worker listens on the address in its spec and the gateway
speaks frames to it directly, so that a prediction is one hop on every cluster.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from modelmill.cluster.logs import LogLimits


class Handle(Protocol):
    """Something that was started."""

    @property
    def pid(self) -> int:
        """The number people see in `ps`."""

    def messages(self) -> list[dict[str, Any]]:
        """What it reported since the last call."""

    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""

    def memory(self) -> int:
        """Bytes that it holds, pages shared with others counted in parts; 0 when it has ended."""

    def terminate(self) -> None:
        """Ask it to finish what it holds and go."""

    def kill(self) -> None:
        """End it and all it started, now."""


class Cluster(Protocol):
    """A place to run things."""

    def warm(self, entry: str, *modules: str) -> None:
        """Prepare to start `module:function` often and quickly, with these modules imported; may do
        nothing.
        """

    def keep_logs(self, limits: LogLimits) -> None:
        """Keep the logs of what is started from now on within limits; may do nothing where the
        place keeps logs itself.
        """

    def start(
        self,
        entry: str,
        spec: msgspec.Struct,
        *,
        title: str,
        log: Path,
        env: Mapping[str, str] | None = None,
        fds: tuple[int, ...] = (),
    ) -> Handle:
        """Start `module:function` with a spec; `title` is shown by `ps`, output goes to `log`."""
