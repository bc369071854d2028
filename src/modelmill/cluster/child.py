"""The main module of a child process: sets its title, ties its life to its parent's, runs its
entry.

Arguments: `module:function`, title, the descriptor to report on, the parent's pid, and where the
log is to be kept within limits its path, the bytes of a part and how many. The spec comes on stdin.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from modelmill.cluster.logs import LogLimits, keep

Report = Callable[[dict[str, Any]], None]

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the entry; its exit status is the process's."""
    entry, title, descriptor, parent, *log = sys.argv[1:]
    spec = sys.stdin.buffer.read()
    setproctitle(title)
    die_with_parent(int(parent))
    if log:
        keep(Path(log[0]), LogLimits(int(log[1]), int(log[2])))
    pipe = int(descriptor)

    def report(message: dict[str, Any]) -> None:
        os.write(pipe, json.dumps(message).encode() + b"\n")

    module, _, function = entry.partition(":")
    return int(
        getattr(importlib.import_module(module), function)(spec, report) or 0
    )


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends, however that ends (prctl(2),
    PR_SET_PDEATHSIG).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(
            PR_SET_PDEATHSIG, signal.SIGKILL
        )
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
