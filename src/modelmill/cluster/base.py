"""The contract of a cluster: start a process or actor, see when it is lost, stop it.

Calls do not go through the handle: a worker listens on the address in its spec and the gateway
speaks frames to it directly, so that a prediction is one hop on every cluster.
"""

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from modelmill.cluster.logs import LogLimits

POLL_SECONDS = 0.01


class Handle(Protocol):
    """A started process or actor."""

    @property
    def pid(self) -> int:
        """Its process number."""

    def messages(self) -> list[dict[str, Any]]:
        """The messages that it reported since the last call."""

    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""

    def memory(self) -> int:
        """Bytes of memory, shared pages divided among their users; 0 when it has ended."""

    def terminate(self) -> None:
        """Ask it to drain and exit."""

    def kill(self) -> None:
        """End it and all processes that it started, now."""


class Cluster(Protocol):
    """Starts processes or actors."""

    def warm(self, entry: str, *modules: str) -> None:
        """Prepare for fast starts of `module:function` with these modules imported; may do
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


def terminate_all(handles: Collection[Handle], until: float) -> None:
    """Ask processes to end; returns when all have, or at a time (`time.monotonic`)."""
    for handle in handles:
        handle.terminate()
    while any(handle.exit_code() is None for handle in handles):
        if time.monotonic() >= until:
            return
        time.sleep(POLL_SECONDS)
