"""How many requests a second each key may send: token buckets, in memory."""

from modelmill.errors import Overloaded
from modelmill.types import KeyInfo


class Bucket:
    """Tokens that come back at a rate, up to a burst."""

    __slots__ = ("at", "tokens")

    def __init__(self, burst: float, now: float) -> None:
        self.tokens, self.at = burst, now

    def take(self, rate: float, burst: float, now: float) -> float:
        """Seconds until a token is there; 0 when one was taken."""
        self.tokens = min(burst, self.tokens + (now - self.at) * rate)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / rate


class Rates:
    """The buckets of all keys that have a limit; each of several gateways grants its share of
    it.
    """

    def __init__(self, gateways: int = 1) -> None:
        self._gateways = gateways
        self._buckets: dict[str, Bucket] = {}

    def admit(self, caller: KeyInfo, now: float) -> None:
        """Count a request; raises `Overloaded` saying when to come again."""
        if not caller.rate:
            return
        rate = caller.rate / self._gateways
        burst = max(1.0, (caller.burst or caller.rate) / self._gateways)
        bucket = self._buckets.get(caller.digest)
        if bucket is None:
            bucket = self._buckets[caller.digest] = Bucket(burst, now)
        if wait := bucket.take(rate, burst, now):
            raise _too_fast(caller, wait)

    def keep(self, known: set[str]) -> None:
        """Forget keys that no longer exist."""
        for digest in self._buckets.keys() - known:
            del self._buckets[digest]


def _too_fast(caller: KeyInfo, wait: float) -> Overloaded:
    may = f"the key '{caller.name}' may send {caller.rate:g} requests a second"
    return Overloaded(may, retry_after=wait)
