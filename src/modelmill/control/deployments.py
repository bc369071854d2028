"""Deployments: what should be served, and the loop that makes it so with workers.

A new version is loaded beside the old one; the gateways are told of its workers only when all are ready, and
only then the old ones are asked to go. They stay until every gateway has let go of them.
"""

import logging
import time
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import delete, select, update

from modelmill.cluster.base import Cluster, Handle
from modelmill.control.db import ApiKey, Database, Deployment, Project, Replica, Revision, Version, bump
from modelmill.control.registry import Registry
from modelmill.errors import MillError, unknown
from modelmill.tasks.base import task_named
from modelmill.types import KeyInfo, Manifest, Route, Snapshot, WorkerSpec

log = logging.getLogger("modelmill.node")

TENSOR = "tensor"
BACKOFF = (0.0, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
KILL_SECONDS = 65


class Deployments:
    """Rows of deployments, for the API."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database, self._registry = database, registry

    def deploy(self, project: int, reference: str, name: str, replicas: int | None) -> Deployment:
        """Want a version served under a name; doing it twice is the same as once."""
        version = self._registry.get(project, reference)
        name = name or version.model
        with self._database.session() as session:
            query = select(Deployment).where(Deployment.project_id == project, Deployment.name == name)
            row = session.scalars(query).first()
            if row is None:
                row = Deployment(project_id=project, name=name, model=version.model, version=version.number, replicas=1)
                session.add(row)
            row.model, row.version, row.error = version.model, version.number, ""
            row.replicas = replicas or row.replicas
            bump(session)
        return row

    def all(self, project: int) -> list[Deployment]:
        """All of a project, by name."""
        with self._database.session() as session:
            query = select(Deployment).where(Deployment.project_id == project).order_by(Deployment.name)
            return list(session.scalars(query))

    def get(self, project: int, name: str) -> Deployment:
        """One by name; raises `NotFound` naming those that exist."""
        rows = {row.name: row for row in self.all(project)}
        if name not in rows:
            raise unknown("deployment", name, rows)
        return rows[name]

    def ready(self, project: int) -> dict[int, int]:
        """How many workers of each deployment (by its number) are ready."""
        with self._database.session() as session:
            query = select(Replica).where(Replica.project_id == project, Replica.ready)
            counts: dict[int, int] = {}
            for replica in session.scalars(query):
                counts[replica.deployment_id] = counts.get(replica.deployment_id, 0) + 1
            return counts

    def undeploy(self, project: int, name: str) -> None:
        """Stop serving a name."""
        row = self.get(project, name)
        with self._database.session() as session:
            session.execute(delete(Replica).where(Replica.deployment_id == row.id))
            session.execute(delete(Deployment).where(Deployment.id == row.id))
            bump(session)

    def snapshot(self, known: int) -> Snapshot | None:
        """Routes and keys for a gateway, or None when nothing has changed since revision `known`."""
        with self._database.session() as session:
            revision = session.scalar(select(Revision.value)) or 0
            if revision == known:
                return None
            projects = {row.id: row.name for row in session.scalars(select(Project))}
            keys = {
                key.digest: KeyInfo(
                    digest=key.digest,
                    project=projects[key.project_id],
                    role=key.role,
                    name=key.name,
                    rate=key.rate,
                    burst=key.burst,
                )
                for key in session.scalars(select(ApiKey))
            }
            routes = {}
            for row in session.scalars(select(Deployment)):
                try:
                    route = self._route(session, row, projects[row.project_id])
                except (MillError, msgspec.MsgspecError) as error:  # such as a task that is no longer installed
                    log.error("deployment %s can't be routed: %s", row.name, error)
                    continue
                routes[f"{route.project}/{route.deployment}"] = route
            return Snapshot(revision=revision, routes=routes, keys=keys)

    @staticmethod
    def _route(session: Any, row: Deployment, project: str) -> Route:
        model, number = row.serving_model or row.model, row.serving or row.version
        query = select(Version).where(
            Version.project_id == row.project_id, Version.model == model, Version.number == number
        )
        manifest = msgspec.convert(session.scalars(query).one().manifest, Manifest)
        replicas = select(Replica).where(
            Replica.deployment_id == row.id, Replica.ready, Replica.model == model, Replica.version == number
        )
        sockets = [replica.socket for replica in session.scalars(replicas)]
        return Route(
            deployment=row.name,
            project=project,
            model=model,
            version=number,
            task=manifest.task,
            kind=task_named(manifest.task).INPUT if manifest.task else TENSOR,
            engine=manifest.engine,
            # A deployment whose only worker was lost keeps its calls waiting for the next one.
            ready=row.serving is not None,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            sockets=sockets,
            labels=manifest.labels,
            error=row.error,
            created=int(row.created.timestamp()),
        )


class Running:
    """A worker process of this node."""

    def __init__(self, deployment: int, name: str, model: str, version: int, socket: str, handle: Handle) -> None:
        self.deployment, self.name, self.socket, self.handle = deployment, name, socket, handle
        self.model, self.version = model, version
        self.ready = False
        self.leaving: float | None = None
        self.asked = False
        self.error = ""


class Reconciler:
    """The loop that turns wanted deployments into workers; owned by one node."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        cluster: Cluster,
        logs: Path,
        sockets: Path,
        entry: str,
        threads: int,
    ) -> None:
        self._database, self._registry, self._cluster = database, registry, cluster
        self._logs, self._sockets, self._entry, self._threads = logs, sockets, entry, threads
        self._workers: list[Running] = []
        self._failures: dict[tuple[int, str, int], tuple[int, float]] = {}
        self._updates: dict[int, dict[str, Any]] = {}
        self._changed = False
        self._count = 0

    def recover(self) -> None:
        """At start: no worker of an earlier run exists any more."""
        with self._database.session() as session:
            session.execute(delete(Replica))
            session.execute(update(Deployment).values(serving=None, serving_model=None))
            bump(session)

    def tick(self, news: bool = True) -> None:
        """See what the workers say; when there is news from them or others, start and stop what is needed.

        What changed is kept in memory until one transaction has written it and told the gateways; should that
        fail, the next tick tries again.
        """
        self._observe()
        if not (news or self._changed):
            return
        with self._database.session() as session:
            wanted = list(session.scalars(select(Deployment)))
        numbers = {row.id for row in wanted}
        self._dismiss([w for w in self._workers if w.deployment not in numbers and w.leaving is None])
        for row in wanted:
            self._serve(row)
        if self._changed:
            self._write(wanted)
        for worker in self._workers:
            if worker.leaving and not worker.asked:  # only now: the gateways have been told to let go
                worker.handle.terminate()
                worker.asked = True

    def _write(self, wanted: list[Deployment]) -> None:
        """Workers, what is served and what failed, in one transaction that also tells the gateways."""
        project = {row.id: row.project_id for row in wanted}
        with self._database.session() as session:
            session.execute(delete(Replica))
            for w in self._workers:
                if w.leaving is None and w.deployment in project:
                    session.add(
                        Replica(
                            project_id=project[w.deployment],
                            deployment_id=w.deployment,
                            model=w.model,
                            version=w.version,
                            socket=w.socket,
                            pid=w.handle.pid,
                            ready=w.ready,
                        )
                    )
            for number, values in self._updates.items():
                session.execute(update(Deployment).where(Deployment.id == number).values(**values))
            bump(session)
        self._changed, self._updates = False, {}

    def stop(self) -> None:
        """Ask every worker to go (the gateways have let go of them by now)."""
        for worker in self._workers:
            worker.handle.terminate()
        patience = time.monotonic() + 5
        while any(w.handle.exit_code() is None for w in self._workers) and time.monotonic() < patience:
            time.sleep(0.02)
        for worker in self._workers:
            worker.handle.kill()

    def _observe(self) -> None:
        for worker in list(self._workers):
            for message in worker.handle.messages():
                self._changed = True
                worker.error = message.get("error", worker.error)
                if message.get("ready"):
                    worker.ready = True
                    self._failures.pop((worker.deployment, worker.model, worker.version), None)
            if worker.handle.exit_code() is not None:
                self._bury(worker)
            elif worker.leaving and time.monotonic() - worker.leaving > KILL_SECONDS:
                worker.handle.kill()

    def _bury(self, worker: Running) -> None:
        """A worker has ended: forget it, and remember an unwanted end."""
        self._workers.remove(worker)
        self._changed = True
        if worker.leaving is not None:
            return
        message = worker.error or f"its worker ended with status {worker.handle.exit_code()}"
        log.warning("worker %s (pid %d): %s", worker.name, worker.handle.pid, message)
        self._failed((worker.deployment, worker.model, worker.version), message, count=not worker.ready)

    def _failed(self, key: tuple[int, str, int], message: str, *, count: bool = True) -> None:
        """Wait longer after each failure to start; a worker that was ready is replaced at once."""
        failures = self._failures.get(key, (0, 0.0))[0] + count
        self._failures[key] = (failures, time.monotonic() + BACKOFF[min(failures, len(BACKOFF) - 1)])
        if count:
            self._updates.setdefault(key[0], {})["error"] = message
        self._changed = True

    def _serve(self, row: Deployment) -> None:
        """Start what lacks; when the wanted version is whole, route to it and let the others go."""
        mine = [w for w in self._workers if w.deployment == row.id and w.leaving is None]
        right = [w for w in mine if (w.model, w.version) == (row.model, row.version)]
        for _ in range(row.replicas - len(right)):
            self._start(row)
        ready = [w for w in right if w.ready]
        if len(ready) < row.replicas:
            return
        if (row.serving_model, row.serving) != (row.model, row.version) or row.error:
            self._updates[row.id] = {"serving_model": row.model, "serving": row.version, "error": ""}
            self._changed = True
        self._dismiss([w for w in mine if w not in ready] + ready[row.replicas :])

    def _start(self, row: Deployment) -> None:
        key = (row.id, row.model, row.version)
        if self._failures.get(key, (0, 0.0))[1] > time.monotonic():
            return
        self._count += 1
        socket = str(self._sockets / f"w{self._count}.sock")
        try:
            version = self._registry.get(row.project_id, f"{row.model}:{row.version}")
            spec = WorkerSpec(
                deployment=row.name,
                model=row.model,
                version=row.version,
                bundle=str(self._registry.folder(version)),
                socket=socket,
                threads=self._threads,
            )
            handle = self._cluster.start(
                self._entry,
                spec,
                title=f"modelmill: worker {row.name}",
                log=self._logs / "workers.log",
                env={"OMP_NUM_THREADS": str(self._threads), "MALLOC_ARENA_MAX": "2"},
            )
        except (MillError, OSError) as error:
            self._failed(key, str(error))
            return
        self._workers.append(Running(row.id, row.name, row.model, row.version, socket, handle))
        self._changed = True

    def _dismiss(self, workers: list[Running]) -> None:
        """Workers that are to go: hidden from the gateways with the next write, then asked."""
        for worker in workers:
            worker.leaving = time.monotonic()
            self._changed = True
