"""The one door: authorise, route, queue, call, meter. Every protocol ends here."""

import asyncio
import hashlib
import hmac
import logging
import random
import time
from collections import OrderedDict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from typing import Any

from modelmill import seeds
from modelmill.errors import (
    Forbidden,
    MillError,
    NotFound,
    Unauthenticated,
    Unavailable,
    unknown,
)
from modelmill.serve.admission import Rates
from modelmill.serve.batcher import BatchLimits
from modelmill.serve.exposition import Collector
from modelmill.serve.flight import (
    NOTHING,
    Flight,
    StreamCursor,
    name_of,
    version_of,
)
from modelmill.serve.landed import Observer, refusal, tell_observers
from modelmill.serve.meter import Meter, Series
from modelmill.serve.metrics import count_into
from modelmill.serve.pool import Ask, Pool, PoolLimits
from modelmill.serve.shadow import copies_to
from modelmill.serve.tensors import elements_of, texts_of
from modelmill.serve.tracing import Tracing, trace_call
from modelmill.serve.wire import ANSWER, STREAM, Answer, Tensor
from modelmill.settings import Limits
from modelmill.tasks.kinds import from_parameters
from modelmill.types import (
    Json,
    KeyInfo,
    ServedVersion,
    Snapshot,
    StreamPart,
    Usage,
)

log = logging.getLogger("modelmill.gateway")

REFRESH_SECONDS = 1.0
"""Between two reads of the database when nobody has announced a change."""
KNOWN_HEADERS, HEADER_BYTES = 20_000, 512
"""Headers whose caller is remembered, and how long each may be."""

Operator = Callable[["Gateway", KeyInfo, str, bool], Awaitable[None]]
"""Loads (True) or unloads a deployment and waits until the gateway sees it so; raises
`MillError`.
"""
Place = tuple[str, str, str]
"""Where a pool is: project, deployment, and `main` or the version."""


class Gateway:
    """Answers predictions from a snapshot held in memory, and tells the `observers` of each call
    that is over. Models are loaded and unloaded by its `operator`.
    """

    def __init__(
        self,
        limits: Limits,
        gateways: int = 1,
        *,
        shared_memory: bool = False,
        public_reflection: bool = False,
        tracing: Tracing | None = None,
        observers: Sequence[Observer] = (),
        operator: Operator | None = None,
    ) -> None:
        self.limits = limits
        self.meter = Meter()
        self.draining = False
        self.healthy = True
        self.shared_memory = shared_memory
        self.public_reflection = public_reflection
        self.trace_settings: dict[str, Json] = {}
        """Those changed over v2, by `project/deployment`; the server's by an empty name."""
        self.log_settings: Json = {}
        self.tracing = tracing
        self.observers = self._all_observers(observers)
        self.stale = asyncio.Event()
        """Set when the snapshot is to be read again now."""
        self.urgent = asyncio.Event()
        """Set when there is news that the supervisor should hear at once."""
        self._operator = operator
        self._hung: set[str] = set()
        self._changed = False
        self._rates = Rates(gateways)
        self._pool_limits = PoolLimits(
            limits.queue, limits.queue_bytes, limits.hang_seconds
        )
        self._snapshot: Snapshot | None = None
        self._visible: dict[str, dict[str, ServedVersion]] = {}
        self._callers: OrderedDict[bytes, KeyInfo] = OrderedDict()
        self._pools: dict[Place, Pool] = {}

    def _all_observers(self, more: Sequence[Observer]) -> tuple[Observer, ...]:
        return (
            count_into(self.meter),
            *([trace_call] if self.tracing else []),
            copies_to(self._shadows),
            *more,
        )

    @property
    def ready(self) -> bool:
        """Whether this gateway should get requests."""
        return not self.unready

    @property
    def unready(self) -> str:
        """Why this gateway should get no requests; empty when it should."""
        if self._snapshot is None:
            return "starting"
        return (
            "draining"
            if self.draining
            else ""
            if self.healthy
            else "the disk is full"
        )

    # ---- what there is

    def update(self, snapshot: Snapshot) -> None:
        """Take over routes and keys, and connect to workers again that were lost; calls go on
        undisturbed.
        """
        if self._snapshot is None or snapshot.keys is not self._snapshot.keys:
            self._callers.clear()
            self._rates.keep(set(snapshot.keys))
        self._snapshot = snapshot
        routes = snapshot.routes.values()
        self._visible = {}
        for route in routes:
            self._visible.setdefault(route.project, {})[route.deployment] = (
                route
            )
        self._follow_all(routes)
        self.meter.forget(
            {(route.project, route.deployment) for route in routes}
        )

    def _follow_all(self, routes: Iterable[ServedVersion]) -> None:
        """A pool for each version there is, and for no other."""
        wanted: set[Place] = set()
        for route in routes:
            wanted.add(self._follow(route, "main"))
            for other in route.others:
                wanted.add(self._follow(other, version_of(other)))
        for place in self._pools.keys() - wanted:
            self._retire(place)

    def _retire(self, place: Place) -> None:
        """Close a pool; what waits goes to the main version, except copies for a shadow."""
        pool = self._pools.pop(place)
        heir = self._pools.get((place[0], place[1], "main"))
        pool.close(None if pool.shadow else heir)

    def _follow(self, route: ServedVersion, slot: str) -> Place:
        """The pool of a route is as the route says; returns its place."""
        place = (route.project, route.deployment, slot)
        pool = self._pools.get(place)
        if pool is None:
            pool = self._pools[place] = self._new_pool(route)
        pool.batch = self._batch(route)
        pool.series = self.meter.series(name_of(route))
        pool.shadow = route.shadow
        pool.slots = max(1, route.batch) if route.grows else 0
        pool.follow(route.sockets, version_of(route))
        return place

    def _new_pool(self, route: ServedVersion) -> Pool:
        return Pool(
            route.deployment,
            self._batch(route),
            self._pool_limits,
            self.meter.series(name_of(route)),
            on_hang=self._report_hung,
            on_idle_call=self.urgent.set,
        )

    def _batch(self, route: ServedVersion) -> BatchLimits:
        """What a batch of a version may hold."""
        limits = self.limits
        if route.grows:  # each call goes as soon as there is room for it
            return BatchLimits(1, 1, limits.body_bytes, 0.0)
        rows = route.batch or limits.batch
        most = min(limits.batch, rows)
        return BatchLimits(most, rows, limits.body_bytes, route.max_wait)

    def _report_hung(self, path: str) -> None:
        self._hung.add(path)
        self.urgent.set()

    def take_news(self) -> tuple[list[str], bool]:
        """Sockets of workers that hang, and whether the database was changed, since the last
        time.
        """
        hung, changed = list(self._hung), self._changed
        self._hung, self._changed = set(), False
        return hung, changed

    def routes(self, caller: KeyInfo) -> dict[str, ServedVersion]:
        """The deployments that the caller can see, by name."""
        return self._visible.get(caller.project, {})

    def route(
        self, caller: KeyInfo, name: str, version: str | None = None
    ) -> ServedVersion:
        """One deployment, or one version behind its name; raises `NotFound` naming those that
        exist.
        """
        routes = self._visible.get(caller.project, {})
        route = routes.get(name)
        if route is None:
            raise unknown("model", name, routes)
        if not version or version == str(route.version):
            return route
        for other in route.others:
            if version == str(other.version):
                return other
        raise _not_served(route, version)

    def pick(
        self, caller: KeyInfo, name: str, version: str | None = None
    ) -> ServedVersion:
        """The version that answers the next prediction: the pinned one, else by the weights of the
        canaries.
        """
        route = self.route(caller, name, version)
        if route.others and not version:
            draw = random.random()
            for other in route.others:
                draw -= other.weight
                if draw < 0:
                    return other if other.ready else route
        return route

    def renewed(
        self, caller: KeyInfo, route: ServedVersion, version: str | None = None
    ) -> ServedVersion:
        """A version that was picked, as it is now: the pinned one, else the main one where it has
        gone. Nothing is drawn again.
        """
        now = self.route(caller, route.deployment, version)
        if version:
            return now
        picked = version_of(route)
        same = (
            one for one in now.others if one.ready and version_of(one) == picked
        )
        return next(same, now)

    def connected(self, route: ServedVersion) -> bool:
        """Whether a worker of the version answers this gateway."""
        return self._pool(route).connected > 0

    def statistics(self, route: ServedVersion) -> Series:
        """The counters of this version, all gateways together."""
        return self.meter.total(name_of(route))

    def pools(self) -> Iterator[tuple[Place, Pool]]:
        """Every pool with its place."""
        return iter(self._pools.items())

    # ---- who may

    def authorise(self, key: str | None) -> KeyInfo:
        """Who is calling; raises `Unauthenticated`."""
        if self._snapshot is None:
            raise Unavailable("the gateway is starting", retry_after=1)
        if not key:
            raise Unauthenticated(
                "a key is needed: send the header 'Authorization: Bearer KEY'"
            )
        digest = hashlib.sha256(
            key.encode("utf-8", "surrogateescape")
        ).hexdigest()
        info = self._snapshot.keys.get(digest)
        if info is None or not hmac.compare_digest(info.digest, digest):
            raise Unauthenticated("the key is not known")
        return info

    def known(self, header: bytes) -> KeyInfo | None:
        """Who sent this very header before, with the keys of now."""
        return self._callers.get(header)

    def remember(self, header: bytes, caller: KeyInfo) -> None:
        """Spare the next request with the same header the hashing."""
        if len(header) > HEADER_BYTES or header[:7].lower() != b"bearer ":
            return
        if len(self._callers) >= KNOWN_HEADERS:
            self._callers.popitem(last=False)
        self._callers[header] = caller

    def tell_of_change(self) -> None:
        """Something was written into the database: this gateway, the others and the supervisor look
        now.
        """
        self._changed = True
        self.stale.set()
        self.urgent.set()

    def require_admin(self, caller: KeyInfo) -> None:
        """Raises `Forbidden` unless the key may administer."""
        if caller.role != "admin":
            raise Forbidden("this needs an admin key")

    async def operate(self, caller: KeyInfo, name: str, loaded: bool) -> None:
        """Load or unload a deployment and wait until it is so; raises `Forbidden`, `NotFound`,
        `Unavailable`.
        """
        self.require_admin(caller)
        if self._operator is None:
            self.route(caller, name)
            raise Unavailable(
                "this gateway can't load or unload models: nothing runs workers for it"
            )
        await self._operator(self, caller, name, loaded)

    # ---- predictions

    async def predict(
        self,
        caller: KeyInfo,
        route: ServedVersion,
        protocol: str,
        *,
        data: bytes | None = None,
        kind: str = "",
        tensors: list[Tensor] | None = None,
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        priority: int = 0,
        gone: Callable[[], bool] | None = None,
        request_id: str = "",
        pinned: bool = False,
    ) -> Answer:
        """One prediction through the queue of `route` (from `pick`); raises what went wrong as a
        `MillError`.

        `kind` is that of `data`, where it is not the one that the task takes first. `outputs` names
        the tensors wanted (none: all); `timeout` is in seconds; a smaller
        `priority` goes first, 0 stands for the default; `gone` tells whether the caller still
        waits; `request_id` names the call in logs. A call that is `pinned` is answered by this
        version or not at all; another may be answered by the version that takes its place, which
        the answer then names.
        """
        longest = self.limits.timeout_seconds
        pin = version_of(route) if pinned else ""
        patience = min(timeout, longest) if timeout else longest
        ask = Ask(
            caller.name,
            priority,
            patience,
            tuple(outputs),
            gone,
            request_id,
            pin,
            kind=kind,
        )
        flight = self.begin(
            caller, route, protocol, ask, data, tensors or [], parameters or {}
        )
        try:
            await flight.future
        except MillError:
            pass  # landing raises it
        except asyncio.CancelledError:
            # The caller has gone: what was not sent is dropped.
            _abandon(flight)
            raise
        return flight.land()

    async def stream(
        self,
        caller: KeyInfo,
        route: ServedVersion,
        protocol: str,
        *,
        data: bytes,
        kind: str = "",
        parameters: Mapping[str, Any],
        timeout: float | None = None,
        priority: int = 0,
        gone: Callable[[], bool] | None = None,
        request_id: str = "",
    ) -> AsyncIterator[StreamPart]:
        """The tokens of an answer as they are written; the last one has a `finish_reason`.

        Raises what went wrong. `timeout` is that between two tokens: a long answer may take its
        time. An answer that has begun is ended by the version that began it, or not at all. Closing
        the iterator takes the call back.
        """
        parts: asyncio.Queue[StreamPart | None] = asyncio.Queue()
        patience = min(
            timeout or self.limits.timeout_seconds, self.limits.timeout_seconds
        )
        ask = Ask(
            caller.name,
            priority,
            patience,
            (STREAM,),
            gone,
            request_id,
            on_part=parts.put_nowait,
            kind=kind,
        )
        flight = self.begin(caller, route, protocol, ask, data, [], parameters)
        flight.future.add_done_callback(lambda _: parts.put_nowait(None))
        last = flight.started
        cursor = StreamCursor()
        landed = False
        try:
            while (part := await parts.get()) is not None:
                now = time.monotonic()
                flight.extend(now + patience)
                if cursor.is_new(part):
                    flight.series.token(
                        now - last, first=len(cursor.tokens) == 1
                    )
                    last = now
                    yield part
            landed = True
            flight.land(cursor.usage)
        finally:
            if not landed:
                _abandon(flight, cursor.usage)

    def begin(
        self,
        caller: KeyInfo,
        route: ServedVersion,
        protocol: str,
        ask: Ask,
        data: bytes | None,
        tensors: list[Tensor],
        parameters: Mapping[str, Any],
    ) -> Flight:
        """Queue one prediction; its answer is there when the flight's future is done. Raises as
        `predict` does.
        """
        started = time.monotonic()
        series: Series | None = None
        try:
            if not route.ready:
                self.refuse_unservable(route)
            pool = self._pool(route)
            if caller.rate:
                self._rates.admit(caller, started)
            series = pool.series
            if parameters and route.also:
                data, tensors, parameters, ask = _typed(
                    route, data, tensors, parameters, ask
                )
            if route.grows:
                parameters = _seeded(data, parameters, ask)
            pending = pool.submit(data, tensors, parameters, ask)
        except MillError as error:
            refused = refusal(
                caller, route, protocol, ask, error, started, series
            )
            tell_observers(self.observers, refused)
            raise
        return Flight(
            self.observers,
            caller,
            route,
            protocol,
            series,
            pending,
            started,
            ask,
        )

    def _shadows(self, route: ServedVersion) -> list[Pool]:
        """The queues of the shadows of a version that is called."""
        places = [
            (one.project, one.deployment, version_of(one))
            for one in route.others
            if one.shadow and one.ready
        ]
        return [self._pools[place] for place in places if place in self._pools]

    def refuse_unservable(self, route: ServedVersion) -> None:
        """Raises `Unavailable` for a deployment that has no model to answer with."""
        if not (route.loaded and route.ready):
            raise _unservable(route)

    def _pool(self, route: ServedVersion) -> Pool:
        place = (route.project, route.deployment, version_of(route))
        pool = self._pools.get(place) or self._pools.get(
            (route.project, route.deployment, "main")
        )
        if pool is None:
            raise NotFound(f"'{route.deployment}' was undeployed")
        return pool

    # ---- what others want to know

    def exposition(self, caller: KeyInfo) -> bytes:
        """Metrics as Prometheus text: all of them for an admin key; for another the series of its
        project, and its own use.
        """
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        reader = None if caller.role == "admin" else caller
        registry.register(Collector(self.meter, self._gauges(), reader))
        return generate_latest(registry)

    def _gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        for place, pool in self._pools.items():
            labels = dict(
                zip(("project", "deployment", "slot"), place, strict=True)
            )
            for name, text, value in (
                ("pending_requests", "waiting or being answered", pool.pending),
                ("ready_workers", "connected workers", pool.connected),
                ("busy_workers", "workers that hold a batch", pool.busy),
            ):
                yield f"modelmill_{name}", text, labels, value

    async def follow(
        self,
        load: Callable[[Snapshot | None], Snapshot | None],
        healthy: Callable[[], bool],
    ) -> None:
        """Keep the snapshot fresh until cancelled; a stuck database leaves the last one in
        force.
        """
        while True:
            self.stale.clear()
            try:
                await self._refresh(load, healthy)
            except MillError as error:
                log.warning("the snapshot could not be refreshed: %s", error)
            except Exception:
                log.exception("the snapshot could not be refreshed")
            now = time.monotonic()
            for pool in list(self._pools.values()):
                pool.watch(now)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stale.wait(), REFRESH_SECONDS)

    async def _refresh(
        self,
        load: Callable[[Snapshot | None], Snapshot | None],
        healthy: Callable[[], bool],
    ) -> None:
        """Take over a newer snapshot where there is one, else the same again."""
        known = self._snapshot
        snapshot, self.healthy = await asyncio.to_thread(
            lambda: (load(known), healthy())
        )
        if (latest := snapshot or known) is not None:
            self.update(latest)


def _abandon(flight: Flight, used: Usage = NOTHING) -> None:
    """Land a call that nobody waits for any more, or that failed."""
    flight.future.cancel()
    with suppress(MillError, asyncio.CancelledError):
        flight.land(used)


def _not_served(route: ServedVersion, version: str) -> NotFound:
    serves = " and ".join(str(one.version) for one in (route, *route.others))
    return NotFound(
        f"'{route.deployment}' serves version {serves}, not {version[:20]}"
    )


def _unservable(route: ServedVersion) -> Unavailable:
    name = route.deployment
    if not route.loaded:
        return Unavailable(
            f"'{name}' is unloaded; load it first", retry_after=10
        )
    if route.error:
        return Unavailable(
            f"'{name}' can't be served: {route.error}", retry_after=10
        )
    return Unavailable(f"'{name}' is loading", retry_after=1)


def _typed(
    route: ServedVersion,
    data: bytes | None,
    tensors: list[Tensor],
    parameters: Mapping[str, Any],
    ask: Ask,
) -> tuple[bytes | None, list[Tensor], Mapping[str, Any], Ask]:
    """The same call, where an input that came as a parameter is the input, in each row of raw
    tensors; raises `InvalidInput`.
    """
    found, rest = from_parameters(parameters, route.also)
    if found is None:
        return data, tensors, rest, ask
    if data is not None:
        return found.data, tensors, rest, ask._replace(kind=found.kind)
    if [(one.name, one.datatype) for one in tensors] == [(route.kind, "BYTES")]:
        rows = len(elements_of(tensors[0]))
        tensors = [texts_of(found.kind, [found.data] * rows)]
    return data, tensors, rest, ask


def _seeded(
    data: bytes | None, parameters: Mapping[str, Any], ask: Ask
) -> Mapping[str, Any]:
    """The parameters, with a seed where texts are to be written: whoever goes on after a lost
    worker writes the same text, and so does a shadow.
    """
    if parameters.get("seed") is not None or (
        data is None and ask.outputs != (ANSWER,)
    ):
        return parameters
    return {**parameters, "seed": seeds.draw()}
