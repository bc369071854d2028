"""The meter as Prometheus metrics, in the meaning of Triton's where it has them."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from modelmill.serve.meter import (
    BUCKETS,
    SIZES,
    Histogram,
    Meter,
    Name,
    Series,
    Use,
)
from modelmill.types import KeyInfo

VERSION = ("project", "deployment", "version")
"""The labels of a series."""
PAYER = ("project", "key", "deployment")
"""The labels of what a key has used."""

COUNTERS = {
    "rejected": ("modelmill_rejected_requests", "refused: the queue was full"),
    "rows": ("modelmill_rows", "rows that models ran"),
    "batches": ("modelmill_batches", "batches that workers answered"),
    "shadow_answers": (
        "modelmill_shadow_answers",
        "copies answered by a shadow",
    ),
    "shadow_disagreements": (
        "modelmill_shadow_disagreements",
        "of them, other than the answer",
    ),
}
"""Metric and help of the plain counters of a series, by their attribute."""

HISTOGRAMS = {
    "latency": ("modelmill_request_seconds", "from arrival to answer"),
    "queue": ("modelmill_queue_seconds", "from arrival to dispatch"),
    "compute": ("modelmill_compute_seconds", "of the call's batch"),
    "sizes": ("modelmill_batch_rows", "rows of a batch"),
    "first_token": (
        "modelmill_first_token_seconds",
        "from arrival to a stream's first token",
    ),
    "next_token": (
        "modelmill_next_token_seconds",
        "between the tokens of a stream",
    ),
}
"""Metric and help of the histograms of a series, by their attribute."""


class Collector:
    """The meter as Prometheus metrics; `gauges` yields (metric name, help, labels, value).

    With a `reader`, only the series of its project, and of its keys the use of the reader alone.
    """

    def __init__(
        self,
        meter: Meter,
        gauges: Iterable[tuple[str, str, dict[str, str], float]],
        reader: KeyInfo | None = None,
    ) -> None:
        self._meter = meter
        self._gauges = gauges
        self._reader = reader

    def collect(self) -> Iterator[Metric]:
        """All families: of versions, of what keys have used, and the gauges."""
        yield from self._versions().all()
        yield from self._uses().all()
        yield from self._shown()

    def _versions(self) -> "_VersionFamilies":
        families = _VersionFamilies()
        for name in sorted(self._meter.names()):
            if self._may_read(name[0]):
                families.add(name, self._meter.total(name))
        return families

    def _uses(self) -> "_UseFamilies":
        families = _UseFamilies()
        for use, count in self._meter.used().items():
            if self._may_read(use[0], use[1]):
                families.add(use, count)
        return families

    def _may_read(self, project: str, key: str | None = None) -> bool:
        """Whether the reader may see a project, or a key's use in it."""
        reader = self._reader
        if reader is None:
            return True
        return project == reader.project and key in (None, reader.name)

    def _shown(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for name, text, labels, value in self._gauges:
            if not self._may_read(labels["project"]):
                continue
            family = families.setdefault(
                name, GaugeMetricFamily(name, text, labels=list(labels))
            )
            family.add_metric(list(labels.values()), value)
        yield from families.values()


class _VersionFamilies:
    """The metrics of versions, to which one series after the other is added."""

    def __init__(self) -> None:
        self.requests = _counter(
            "modelmill_requests", "predictions", *VERSION, "protocol", "outcome"
        )
        self.counters = {
            field: _counter(*named, *VERSION)
            for field, named in COUNTERS.items()
        }
        self.tokens = _counter(
            "modelmill_tokens", "read and written", *VERSION, "kind"
        )
        self.histograms = {
            field: HistogramMetricFamily(*named, labels=VERSION)
            for field, named in HISTOGRAMS.items()
        }

    def all(self) -> list[Metric]:
        """Every family."""
        return [
            self.requests,
            *self.counters.values(),
            self.tokens,
            *self.histograms.values(),
        ]

    def add(self, name: Name, series: Series) -> None:
        """Add a version's series."""
        for kind, count in series.requests.items():
            self.requests.add_metric([*name, *kind], count)
        self._add_counters(name, series)
        self._add_tokens(name, series)
        self._add_histograms(name, series)

    def _add_counters(self, name: Name, series: Series) -> None:
        """Those of shadows only where there was one."""
        for field, family in self.counters.items():
            if series.shadow_answers or not field.startswith("shadow_"):
                family.add_metric(name, getattr(series, field))

    def _add_tokens(self, name: Name, series: Series) -> None:
        if series.prompt_tokens:
            self.tokens.add_metric([*name, "prompt"], series.prompt_tokens)
            self.tokens.add_metric(
                [*name, "completion"], series.completion_tokens
            )

    def _add_histograms(self, name: Name, series: Series) -> None:
        """Those of tokens only where there were some."""
        for field, family in self.histograms.items():
            found: Histogram = getattr(series, field)
            if found.count or not field.endswith("_token"):
                edges = SIZES if field == "sizes" else BUCKETS
                family.add_metric(name, _cumulated(found, edges), found.sum)


class _UseFamilies:
    """The metrics of what keys have used, to which one use after the other is added."""

    def __init__(self) -> None:
        self.requests = _counter(
            "modelmill_usage", "answered requests of a key", *PAYER
        )
        self.tokens = _counter(
            "modelmill_usage_tokens",
            "tokens of a key's requests",
            *PAYER,
            "kind",
        )
        self.units = _counter(
            "modelmill_usage_units",
            "what a key's answered requests used otherwise",
            *PAYER,
            "unit",
        )

    def all(self) -> list[Metric]:
        """Every family."""
        return [self.requests, self.tokens, self.units]

    def add(self, use: Use, count: int | float) -> None:
        """Add what a key has used of one unit."""
        *payer, unit = use
        if unit == "requests":
            self.requests.add_metric(payer, count)
        elif unit in ("prompt_tokens", "completion_tokens"):
            self.tokens.add_metric(
                [*payer, unit.removesuffix("_tokens")], count
            )
        else:
            self.units.add_metric([*payer, unit], count)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=labels)


def _cumulated(
    found: Histogram, edges: tuple[float, ...]
) -> list[tuple[str, float]]:
    """The counts up to each edge, as Prometheus has them."""
    pairs, total = [], 0
    for edge, count in zip(
        (*map(float, edges), float("inf")), found.counts, strict=True
    ):
        total += count
        pairs.append(
            ("+Inf" if edge == float("inf") else str(edge), float(total))
        )
    return pairs
