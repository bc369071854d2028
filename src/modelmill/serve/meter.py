"""What was asked and answered, as plain counters on the hot path (see `exposition` for metrics).

Every gateway tells the others what it has counted (see `gossip`), so that each can answer for all
of them.
"""

import time
from bisect import bisect_left

import msgspec

BUCKETS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram(msgspec.Struct, array_like=True):
    """Counts by bucket (the last one has no upper end), and the sum."""

    counts: list[int]
    sum: float = 0.0

    def observe(
        self, value: float, edges: tuple[float, ...] = BUCKETS, times: int = 1
    ) -> None:
        """Count a value."""
        self.counts[bisect_left(edges, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def __iadd__(self, other: "Histogram") -> "Histogram":
        self.counts = [
            mine + theirs
            for mine, theirs in zip(self.counts, other.counts, strict=True)
        ]
        self.sum += other.sum
        return self


def histogram(edges: tuple[float, ...] = BUCKETS) -> Histogram:
    """An empty one."""
    return Histogram([0] * (len(edges) + 1))


class Series(msgspec.Struct, array_like=True):
    """All that is counted of one version behind one deployment's name; times in seconds."""

    requests: dict[tuple[str, str], int] = msgspec.field(default_factory=dict)
    success: int = 0
    failure: int = 0
    rejected: int = 0
    rows: int = 0
    batches: int = 0
    success_seconds: float = 0.0
    failure_seconds: float = 0.0
    decode_seconds: float = 0.0
    run_seconds: float = 0.0
    encode_seconds: float = 0.0
    shadow_answers: int = 0
    shadow_disagreements: int = 0
    last: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency: Histogram = msgspec.field(default_factory=histogram)
    queue: Histogram = msgspec.field(default_factory=histogram)
    compute: Histogram = msgspec.field(default_factory=histogram)
    sizes: Histogram = msgspec.field(default_factory=lambda: histogram(SIZES))
    first_token: Histogram = msgspec.field(default_factory=histogram)
    next_token: Histogram = msgspec.field(default_factory=histogram)

    @property
    def queue_seconds(self) -> float:
        """What calls have waited, in all."""
        return self.queue.sum

    def answered(self, protocol: str, seconds: float, good: bool) -> None:
        """One request has its answer; `last` is in seconds since 1970."""
        kind = (protocol, "success" if good else "failure")
        requests = self.requests
        requests[kind] = requests.get(kind, 0) + 1
        if good:
            self.success += 1
            self.success_seconds += seconds
        else:
            self.failure += 1
            self.failure_seconds += seconds
        latency = self.latency
        latency.counts[bisect_left(BUCKETS, seconds)] += 1
        latency.sum += seconds
        self.last = time.time()

    def ran(
        self, calls: int, rows: int, decode: float, run: float, encode: float
    ) -> None:
        """One batch has come back."""
        self.batches += 1
        self.rows += rows
        self.decode_seconds += decode
        self.run_seconds += run
        self.encode_seconds += encode
        self.compute.observe(decode + run + encode, times=calls)
        self.sizes.observe(rows, SIZES)

    def token(self, seconds: float, *, first: bool) -> None:
        """A stream has its next token, so long after the one before or after its arrival."""
        times = self.first_token if first else self.next_token
        times.observe(seconds)

    def add(self, other: "Series") -> None:
        """What another gateway counted of the same."""
        for kind, count in other.requests.items():
            self.requests[kind] = self.requests.get(kind, 0) + count
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.last = max(self.last, other.last)
        for name in _HISTOGRAMS:
            mine = getattr(self, name)
            mine += getattr(other, name)


_HISTOGRAMS = (
    "latency",
    "queue",
    "compute",
    "sizes",
    "first_token",
    "next_token",
)
_SUMS = tuple(
    field.name
    for field in msgspec.structs.fields(Series)
    if field.name not in ("requests", "last", *_HISTOGRAMS)
)

Name = tuple[str, str, str]
"""Project, deployment and version (`model:number`)."""
Use = tuple[str, str, str, str]
"""Project, key, deployment, and the unit of what was used: `requests`, or one of `types.Usage`."""
Account = dict[str, int | float]
"""What was used so far, by unit."""


class Meter:
    """Series by name: this gateway's own, and the last word of each other gateway."""

    def __init__(self) -> None:
        self.own: dict[Name, Series] = {}
        self.others: dict[str, dict[Name, Series]] = {}
        self.usage: dict[tuple[str, str, str], Account] = {}
        self._usages: dict[str, dict[Use, int | float]] = {}

    def series(self, name: Name) -> Series:
        """The counters of a version; made when asked for the first time."""
        found = self.own.get(name)
        if found is None:
            found = self.own[name] = Series()
        return found

    def total(self, name: Name) -> Series:
        """All gateways together."""
        total = Series()
        for series in (self.own, *self.others.values()):
            if name in series:
                total.add(series[name])
        return total

    def names(self) -> set[Name]:
        """Everything that any gateway counted."""
        return {
            name
            for series in (self.own, *self.others.values())
            for name in series
        }

    def receive(
        self,
        gateway: str,
        news: dict[Name, Series],
        usage: dict[Use, int | float],
    ) -> None:
        """Another gateway's counters; those of one that has ended stay as they were."""
        self.others.setdefault(gateway, {}).update(news)
        self._usages.setdefault(gateway, {}).update(usage)

    def usage_of(self, project: str, key: str, deployment: str) -> Account:
        """What a key has used of a deployment over this gateway, to be added to."""
        payer = (project, key, deployment)
        found = self.usage.get(payer)
        if found is None:
            found = self.usage[payer] = {}
        return found

    def uses(self) -> dict[Use, int | float]:
        """What keys have used over this gateway."""
        return {
            (*payer, unit): amount
            for payer, usage in self.usage.items()
            for unit, amount in usage.items()
        }

    def used(self) -> dict[Use, int | float]:
        """What keys have used, all gateways together."""
        total: dict[Use, int | float] = {}
        for usage in (self.uses(), *self._usages.values()):
            for use, count in usage.items():
                total[use] = total.get(use, 0) + count
        return total

    def forget(self, known: set[tuple[str, str]]) -> None:
        """Drop what was counted of deployments that are not among the `known` ones (project,
        name).
        """
        for series in (self.own, *self.others.values()):
            for name in [name for name in series if name[:2] not in known]:
                del series[name]
        self._forget_usage(known)

    def _forget_usage(self, known: set[tuple[str, str]]) -> None:
        for payer in [
            one for one in self.usage if (one[0], one[2]) not in known
        ]:
            del self.usage[payer]
        for usage in self._usages.values():
            for use in [use for use in usage if (use[0], use[2]) not in known]:
                del usage[use]
