"""The routes of gateways: what each deployment serves at this moment, and the keys of callers."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from modelmill.control.db import (
    KEYS,
    ROUTES,
    ApiKey,
    Deployment,
    Project,
    Replica,
    Revision,
    Version,
)
from modelmill.control.options import options_of
from modelmill.errors import MillError
from modelmill.tasks.base import interface_of
from modelmill.types import KeyInfo, Manifest, ServedVersion, Snapshot, Variant

log = logging.getLogger("modelmill.node")

Known = tuple[int, str, int]
"""A version: project, model and number."""


class Manifests:
    """The manifests of versions; cached, for versions are immutable."""

    def __init__(self) -> None:
        self._manifests: dict[Known, Manifest] = {}

    def get(self, session: Session, version: Known) -> Manifest:
        """The manifest of a version."""
        found = self._manifests.get(version)
        if found is None:
            project, model, number = version
            query = select(Version).where(
                Version.project_id == project,
                Version.model == model,
                Version.number == number,
            )
            found = msgspec.convert(
                session.scalars(query).one().manifest, Manifest
            )
            self._manifests[version] = found
        return found


@dataclass
class Serving:
    """A deployment with the name of its project and its ready workers."""

    row: Deployment
    project: str
    replicas: list[Replica]

    def of(self, version: tuple[str, int]) -> list[Replica]:
        """The ready workers of a version."""
        return [
            replica
            for replica in self.replicas
            if (replica.model, replica.version) == version
        ]


class Routes:
    """Makes the snapshots of gateways from the rows of deployments."""

    def __init__(self, manifests: Manifests) -> None:
        self._manifests = manifests

    def snapshot(
        self, session: Session, known: Snapshot | None
    ) -> Snapshot | None:
        """Routes and keys, or None when nothing has changed since the snapshot `known`; what has
        not changed is that of `known`.
        """
        counts = {
            row.id: row.value for row in session.scalars(select(Revision))
        }
        revision = (counts[ROUTES], counts[KEYS])
        if known is not None and known.revision == revision:
            return None
        projects = {
            row.id: row.name for row in session.scalars(select(Project))
        }
        keys = routes = None
        if known is not None:
            keys = known.keys if known.revision[1] == revision[1] else None
            routes = known.routes if known.revision[0] == revision[0] else None
        if keys is None:
            keys = _keys(session, projects)
        if routes is None:
            routes = self._routes(session, projects)
        return Snapshot(revision=revision, routes=routes, keys=keys)

    def _routes(
        self, session: Session, projects: dict[int, str]
    ) -> dict[str, ServedVersion]:
        replicas = by_deployment(
            session.scalars(select(Replica).where(Replica.ready))
        )
        routes = {}
        for row in session.scalars(select(Deployment)):
            serving = Serving(
                row, projects[row.project_id], replicas.get(row.id, [])
            )
            try:
                route = self._route(session, serving)
            except (MillError, msgspec.MsgspecError) as error:
                # Such as a task that is no longer installed.
                log.error("deployment %s can't be routed: %s", row.name, error)
                continue
            routes[f"{route.project}/{route.deployment}"] = route
        return routes

    def _route(self, session: Session, serving: Serving) -> ServedVersion:
        """The route to the main version, with those to canaries and shadows beside it."""
        row = serving.row
        variants = [msgspec.convert(fields, Variant) for fields in row.variants]
        main = (row.serving_model or row.model, row.serving or row.version)
        return msgspec.structs.replace(
            self._served(session, serving, main),
            # A deployment whose only worker was lost keeps its calls waiting for the next one.
            ready=row.loaded and row.serving is not None,
            error=row.error,
            others=[
                self._beside(session, serving, variant) for variant in variants
            ],
        )

    def _beside(
        self, session: Session, serving: Serving, variant: Variant
    ) -> ServedVersion:
        """The route to a canary or shadow."""
        served = self._served(
            session, serving, (variant.model, variant.version)
        )
        return msgspec.structs.replace(
            served,
            ready=serving.row.loaded and bool(served.sockets),
            weight=variant.weight,
            shadow=variant.shadow,
        )

    def _served(
        self, session: Session, serving: Serving, version: tuple[str, int]
    ) -> ServedVersion:
        """What main version, canary and shadow have in common."""
        row = serving.row
        options = options_of(row)
        manifest = self._manifests.get(session, (row.project_id, *version))
        interface = interface_of(manifest)
        mine = serving.of(version)
        return ServedVersion(
            deployment=row.name,
            project=serving.project,
            model=version[0],
            version=version[1],
            task=manifest.task,
            output=interface.gives,
            grows=interface.streams,
            kind=interface.takes,
            also=tuple(interface.also),
            engine=options.engine or manifest.engine,
            ready=False,
            loaded=row.loaded,
            asleep=row.asleep,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            labels=manifest.labels,
            created=int(row.created.timestamp()),
            sockets=[replica.socket for replica in mine],
            batch=max((replica.batch for replica in mine), default=0),
            max_wait=options.max_wait_ms / 1e3,
        )


def by_deployment(replicas: Iterable[Replica]) -> dict[int, list[Replica]]:
    """The workers of each deployment, by its number."""
    found: dict[int, list[Replica]] = {}
    for replica in replicas:
        found.setdefault(replica.deployment_id, []).append(replica)
    return found


def _keys(session: Session, projects: dict[int, str]) -> dict[str, KeyInfo]:
    return {
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
