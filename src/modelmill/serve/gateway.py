"""The one door: authorise, route, queue, call, meter. Every protocol ends here."""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from modelmill.errors import Forbidden, MillError, NotFound, Unauthenticated, Unavailable, unknown
from modelmill.serve.batcher import BatchLimits
from modelmill.serve.pool import Pool
from modelmill.serve.wire import Answer, Tensor
from modelmill.settings import Limits
from modelmill.types import KeyInfo, Route, Snapshot, Struct

log = logging.getLogger("modelmill.gateway")

REFRESH_SECONDS = 0.1
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meter:
    """What was asked and answered, as Prometheus metrics; durations in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels, registry = ["deployment"], self.registry
        self.requests = Counter(
            "modelmill_requests", "predictions", [*labels, "protocol", "outcome"], registry=registry
        )
        self.latency = Histogram(
            "modelmill_request_seconds", "from arrival to answer", labels, registry=registry, buckets=BUCKETS
        )
        self.queued = Histogram(
            "modelmill_queue_seconds", "from arrival to dispatch", labels, registry=registry, buckets=BUCKETS
        )
        self.compute = Histogram(
            "modelmill_compute_seconds", "of the call's batch", labels, registry=registry, buckets=BUCKETS
        )
        self.pending = Gauge("modelmill_pending_requests", "waiting or being answered", labels, registry=registry)
        self.workers = Gauge("modelmill_ready_workers", "connected workers", labels, registry=registry)


class Statistics(Struct, frozen=True, kw_only=True):
    """Counts of requests and of batches, and seconds spent, in the meaning of Triton's statistics."""

    success: int = 0
    failure: int = 0
    rows: int = 0
    batches: int = 0
    success_seconds: float = 0.0
    failure_seconds: float = 0.0
    queue_seconds: float = 0.0
    decode_seconds: float = 0.0
    run_seconds: float = 0.0
    encode_seconds: float = 0.0
    last: float = 0.0


Operate = Callable[[KeyInfo, str, bool], Awaitable[None]]
"""Load (True) or unload a deployment and wait until it is so; raises `MillError`."""


class Gateway:
    """Answers predictions from a snapshot held in memory."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.meter = Meter()
        self.draining = False
        self.healthy = True
        self.operate: Operate | None = None
        self.shared_memory = False
        self.extra: dict[str, Any] = {}
        self._snapshot: Snapshot | None = None
        self._pools: dict[str, Pool] = {}

    @property
    def ready(self) -> bool:
        """Whether this gateway should get requests."""
        return self._snapshot is not None and not self.draining and self.healthy

    def update(self, snapshot: Snapshot) -> None:
        """Take over routes and keys, and connect to workers again that were lost; calls go on undisturbed."""
        self._snapshot = snapshot
        batch = BatchLimits(self.limits.batch, self.limits.body_bytes)
        for name, route in snapshot.routes.items():
            pool = self._pools.get(name)
            if pool is None:
                observe = self.meter.queued.labels(route.deployment).observe
                pool = self._pools[name] = Pool(route.deployment, batch, self.limits.queue, observe)
            pool.follow(route.sockets)
        for name in self._pools.keys() - snapshot.routes.keys():
            pool = self._pools.pop(name)
            pool.close()
            for gauge in (self.meter.pending, self.meter.workers):
                with suppress(KeyError):
                    gauge.remove(pool.deployment)

    def authorise(self, key: str | None) -> KeyInfo:
        """Who is calling; raises `Unauthenticated`."""
        if self._snapshot is None:
            raise Unavailable("the gateway is starting", retry_after=1)
        if not key:
            raise Unauthenticated("a key is needed: send the header 'Authorization: Bearer KEY'")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        info = self._snapshot.keys.get(digest)
        if info is None or not hmac.compare_digest(info.digest, digest):
            raise Unauthenticated("the key is not known")
        return info

    def require_admin(self, caller: KeyInfo) -> None:
        """Raises `Forbidden` unless the key may administer."""
        if caller.role != "admin":
            raise Forbidden("this needs an admin key")

    def routes(self, caller: KeyInfo) -> dict[str, Route]:
        """The deployments that the caller can see, by name."""
        assert self._snapshot is not None
        every = self._snapshot.routes.values()
        return {route.deployment: route for route in every if route.project == caller.project}

    def route(self, caller: KeyInfo, name: str, version: str | None = None) -> Route:
        """One deployment; raises `NotFound` naming those that exist."""
        routes = self.routes(caller)
        if name not in routes:
            raise unknown("model", name, routes)
        route = routes[name]
        if version is not None and version != str(route.version):
            raise NotFound(f"'{name}' serves version {route.version}, not {version}")
        return route

    def pick(self, caller: KeyInfo, name: str, version: str | None = None) -> Route:
        """The version that answers the next prediction: the pinned one, else by the weights of the canaries."""
        return self.route(caller, name, version)

    def statistics(self, route: Route) -> Statistics:
        """What this version was asked since the platform started, all gateways together."""
        return Statistics()

    def connected(self, route: Route) -> bool:
        """Whether a worker of the deployment answers this gateway."""
        return self._pool(route).connected > 0

    def _pool(self, route: Route) -> Pool:
        pool = self._pools.get(f"{route.project}/{route.deployment}")
        if pool is None:
            raise NotFound(f"'{route.deployment}' was undeployed")
        return pool

    async def predict(
        self,
        caller: KeyInfo,
        route: Route,
        protocol: str,
        *,
        data: bytes | None = None,
        tensors: list[Tensor] | None = None,
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        priority: int = 0,
        gone: Callable[[], bool] | None = None,
        request_id: str = "",
    ) -> Answer:
        """One prediction through the queue of `route` (from `pick`); raises what went wrong as a `MillError`.

        `outputs` names the tensors wanted (none: all); `timeout` is in seconds; a smaller `priority` goes first, 0
        stands for the default; `gone` tells whether the caller still waits; `request_id` names the call in logs.
        """
        self.refuse_unservable(route)
        pool = self._pool(route)
        patience = min(timeout or self.limits.timeout_seconds, self.limits.timeout_seconds)
        started, outcome = time.perf_counter(), "failure"
        try:
            answer = await pool.submit(data, tensors or [], parameters or {}, patience)
            outcome = "success"
            self.meter.compute.labels(route.deployment).observe(answer.compute_seconds)
            return answer
        finally:
            self.meter.latency.labels(route.deployment).observe(time.perf_counter() - started)
            self.meter.requests.labels(route.deployment, protocol, outcome).inc()

    def refuse_unservable(self, route: Route) -> None:
        """Raises `Unavailable` for a deployment that has no model to answer with."""
        if not route.ready:
            if route.error:
                raise Unavailable(f"'{route.deployment}' can't be served: {route.error}", retry_after=10)
            raise Unavailable(f"'{route.deployment}' is loading", retry_after=1)

    def exposition(self) -> bytes:
        """All metrics as Prometheus text."""
        from prometheus_client import generate_latest

        for pool in self._pools.values():
            self.meter.pending.labels(pool.deployment).set(pool.pending)
            self.meter.workers.labels(pool.deployment).set(pool.connected)
        return generate_latest(self.meter.registry)

    async def follow(self, load: Callable[[int], Snapshot | None], healthy: Callable[[], bool]) -> None:
        """Keep the snapshot fresh until cancelled; a stuck database leaves the last one in force."""
        while True:
            try:
                revision = self._snapshot.revision if self._snapshot else -1
                snapshot, self.healthy = await asyncio.to_thread(lambda: (load(revision), healthy()))  # noqa: B023
                if snapshot is not None or self._snapshot is not None:
                    self.update(snapshot or self._snapshot)  # type: ignore[arg-type]
            except MillError as error:
                log.warning("the snapshot could not be refreshed: %s", error)
            except Exception:
                log.exception("the snapshot could not be refreshed")
            await asyncio.sleep(REFRESH_SECONDS)
