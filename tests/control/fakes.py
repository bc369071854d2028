"""A cluster whose processes are the test's to play."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec


@dataclass
class FakeHandle:
    """A process that does what the test says."""

    pid: int
    entry: str
    spec: dict[str, Any]
    title: str
    code: int | None = None
    said: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    killed: bool = False
    obeys: bool = True
    holds: int = 0

    def messages(self) -> list[dict[str, Any]]:
        said, self.said = self.said, []
        return said

    def exit_code(self) -> int | None:
        return self.code

    def memory(self) -> int:
        return self.holds if self.code is None else 0

    def terminate(self) -> None:
        self.asked += 1
        if self.obeys and self.code is None:
            self.code = 0

    def kill(self) -> None:
        self.killed = True
        if self.code is None:
            self.code = -9

    def leave(self, result: dict[str, Any], code: int = 0) -> None:
        """End as a job does, with a result in its folder."""
        (Path(self.spec["folder"]) / "result.json").write_text(
            json.dumps(result)
        )
        self.code = code


class FakeCluster:
    """Keeps what was started."""

    def __init__(self) -> None:
        self.started: list[FakeHandle] = []
        self.failing: Exception | None = None

    def start(
        self,
        entry: str,
        spec: Any,
        *,
        title: str,
        log: Path,
        env: Any = None,
        fds: Any = (),
    ) -> FakeHandle:
        if self.failing:
            raise self.failing
        plain = msgspec.json.decode(msgspec.json.encode(spec))
        self.started.append(
            FakeHandle(1000 + len(self.started), entry, plain, title)
        )
        return self.started[-1]
