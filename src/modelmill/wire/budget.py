"""Memory for request bodies: one budget for all that a process receives, over HTTP and gRPC."""

from modelmill.errors import Overloaded
from modelmill.settings import Limits, machine_memory

OVERHEAD_BYTES = 1 << 20
"""What a gRPC message may hold beside the tensors that `limits.body_bytes` allows."""


class BodyBudget:
    """Bytes of request bodies that are held at one time. One caller may hold half of them, so that
    no single key shuts out the others.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.held = 0
        self._of: dict[str, int] = {}

    def hold(self, caller: str, size: int) -> None:
        """Account for `size` more bytes of a caller; raises `Overloaded` for too many."""
        own = self._of.get(caller, 0) + size
        if self.held + size > self.total or own > self.total // 2:
            raise Overloaded(
                "too many large bodies arrive at once: send this one again later",
                retry_after=1,
            )
        self.held += size
        self._of[caller] = own

    def release(self, caller: str, size: int) -> None:
        """Give back what was held."""
        self.held -= size
        left = self._of.get(caller, 0) - size
        if left > 0:
            self._of[caller] = left
        else:
            self._of.pop(caller, None)


def body_budget(limits: Limits, gateways: int = 1) -> BodyBudget:
    """The budget of one of so many processes: never less than a caller needs for one body."""
    total = limits.receiving_bytes or machine_memory() // 8 // gateways
    return BodyBudget(max(total, 2 * (limits.body_bytes + OVERHEAD_BYTES)))
