"""Deployments: the desired state of what is served under each name, and the routes of gateways."""

import logging
from typing import Any

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from modelmill import plugins
from modelmill.control.db import (
    KEYS,
    ROUTES,
    ApiKey,
    Database,
    Deployment,
    Project,
    Replica,
    Revision,
    Version,
    bump,
)
from modelmill.control.registry import Registry
from modelmill.errors import Conflict, InvalidInput, MillError, unknown
from modelmill.tasks.base import interface_of
from modelmill.types import (
    KeyInfo,
    Manifest,
    ServedVersion,
    ServingOptions,
    Snapshot,
    Variant,
)

log = logging.getLogger("modelmill.node")


Known = tuple[int, str, int]
"""A version: project, model and number."""


class Deployments:
    """Rows of deployments, for the API and the gateways."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database, self._registry = database, registry
        self._manifests: dict[Known, Manifest] = {}

    # ---- desired state

    def deploy(
        self, project: int, reference: str, name: str, **changed: Any
    ) -> Deployment:
        """Serve a version under a name (idempotent).

        `changed` are fields of `ServingOptions`; those that are None keep their value. Raises
        `NotFound` for an unknown version, `InvalidInput` for options that do not fit.
        """
        version = self._registry.get(project, reference)
        name = name or version.model
        with self._database.session() as session:
            row = self._find(session, project, name)
            if row is None:
                row = Deployment(
                    project_id=project,
                    name=name,
                    model=version.model,
                    version=version.number,
                    replicas=1,
                )
                row.options, row.variants = {}, []
                session.add(row)
            row.model = version.model
            row.version = version.number
            row.error = ""
            row.note = ""
            row.variants = [
                variant
                for variant in row.variants
                if (variant["model"], variant["version"]) != (row.model, row.version)
            ]
            options = complete(row, changed)
            row.options = msgspec.to_builtins(options)
            row.loaded = True
            row.asleep = False
            row.replicas = max(options.min_replicas, 1)
            bump(session, ROUTES)
        return row

    def add_variant(
        self, project: int, reference: str, name: str, **fields: Any
    ) -> Deployment:
        """Serve another version under a name, as a canary (`weight`) or a shadow.

        Raises `Conflict` for the main version or other inputs, `InvalidInput` for too much weight.
        """
        version = self._registry.get(project, reference)
        with self._database.session() as session:
            row = self._named(session, project, name or version.model)
            if (row.model, row.version) == (version.model, version.number):
                raise Conflict(
                    f"{version.model}:{version.number} is what '{row.name}' serves already"
                )
            self._refuse_other_signature(session, row, version)
            given = {key: value for key, value in fields.items() if value is not None}
            variant = Variant(model=version.model, version=version.number, **given)
            others = [
                other
                for other in row.variants
                if (other["model"], other["version"])
                != (variant.model, variant.version)
            ]
            total = sum(other["weight"] for other in others) + variant.weight
            if total > 1 + 1e-9:  # sums of tenths are not exact
                raise InvalidInput(
                    f"the canaries of '{row.name}' would get more than all requests"
                )
            row.variants, row.note = [*others, msgspec.to_builtins(variant)], ""
            bump(session, ROUTES)
        return row

    def promote(
        self, project: int, name: str, version: int | None = None
    ) -> Deployment:
        """Make a canary or shadow the main version, its workers included; raises `Conflict` when
        there is none.
        """
        with self._database.session() as session:
            row = self._named(session, project, name)
            chosen = self._variant(row, version)
            row.variants = [variant for variant in row.variants if variant != chosen]
            row.model, row.version = chosen["model"], chosen["version"]
            row.error = ""
            row.note = ""
            row.asleep = False
            bump(session, ROUTES)
        return row

    def drop_variants(
        self, project: int, name: str, version: int | None = None, note: str = ""
    ) -> Deployment:
        """Remove all canaries and shadows, or one version; raises `Conflict` when there is none."""
        with self._database.session() as session:
            row = self._named(session, project, name)
            remaining: list[dict[str, Any]] = []
            if version is not None or not row.variants:
                chosen = self._variant(row, version)
                remaining = [variant for variant in row.variants if variant != chosen]
            row.variants = remaining
            row.note = note
            bump(session, ROUTES)
        return row

    def set_loaded(self, project: int, name: str, loaded: bool) -> Deployment:
        """Load a deployment's workers, or end them while it keeps its name."""
        with self._database.session() as session:
            row = self._named(session, project, name)
            if row.loaded != loaded or (loaded and row.asleep):
                row.loaded = loaded
                row.asleep = False
                row.error = ""
                bump(session, ROUTES)
        return row

    def undeploy(self, project: int, name: str) -> None:
        """Stop serving a name."""
        with self._database.session() as session:
            row = self._named(session, project, name)
            session.execute(delete(Replica).where(Replica.deployment_id == row.id))
            session.execute(delete(Deployment).where(Deployment.id == row.id))
            bump(session, ROUTES)

    # ---- queries

    def all(self, project: int) -> list[Deployment]:
        """All of a project, by name."""
        with self._database.session() as session:
            query = (
                select(Deployment)
                .where(Deployment.project_id == project)
                .order_by(Deployment.name)
            )
            return list(session.scalars(query))

    def get(self, project: int, name: str) -> Deployment:
        """One by name; raises `NotFound` naming those that exist."""
        with self._database.session() as session:
            return self._named(session, project, name)

    def replicas(self, project: int) -> dict[int, list[Replica]]:
        """The workers of each deployment, by its number."""
        with self._database.session() as session:
            found: dict[int, list[Replica]] = {}
            for replica in session.scalars(
                select(Replica).where(Replica.project_id == project)
            ):
                found.setdefault(replica.deployment_id, []).append(replica)
            return found

    def snapshot(self, known: Snapshot | None) -> Snapshot | None:
        """Routes and keys for a gateway, or None when nothing has changed since its snapshot
        `known`.
        """
        with self._database.session() as session:
            counts = {row.id: row.value for row in session.scalars(select(Revision))}
            revision = (counts[ROUTES], counts[KEYS])
            if known is not None and known.revision == revision:
                return None
            projects = {row.id: row.name for row in session.scalars(select(Project))}
            same_keys = known is not None and known.revision[1] == revision[1]
            keys = (
                known.keys
                if known is not None and same_keys
                else self._keys(session, projects)
            )
            same_routes = known is not None and known.revision[0] == revision[0]
            routes = (
                known.routes
                if known is not None and same_routes
                else self._routes(session, projects)
            )
            return Snapshot(revision=revision, routes=routes, keys=keys)

    # ---- routes

    @staticmethod
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

    def _routes(
        self, session: Session, projects: dict[int, str]
    ) -> dict[str, ServedVersion]:
        replicas: dict[int, list[Replica]] = {}
        for replica in session.scalars(select(Replica).where(Replica.ready)):
            replicas.setdefault(replica.deployment_id, []).append(replica)
        routes = {}
        for row in session.scalars(select(Deployment)):
            try:
                route = self._route(
                    session, row, projects[row.project_id], replicas.get(row.id, [])
                )
            except (
                MillError,
                msgspec.MsgspecError,
            ) as error:  # such as a task that is no longer installed
                log.error("deployment %s can't be routed: %s", row.name, error)
                continue
            routes[f"{route.project}/{route.deployment}"] = route
        return routes

    def _route(
        self, session: Session, row: Deployment, project: str, replicas: list[Replica]
    ) -> ServedVersion:
        options = options_of(row)
        variants = [msgspec.convert(one, Variant) for one in row.variants]
        others = [
            self._side(
                session, row, project, options, replicas, (one.model, one.version), one
            )
            for one in variants
        ]
        main = (row.serving_model or row.model, row.serving or row.version)
        return self._side(session, row, project, options, replicas, main, None, others)

    def _side(
        self,
        session: Session,
        row: Deployment,
        project: str,
        options: ServingOptions,
        replicas: list[Replica],
        version: tuple[str, int],
        variant: Variant | None,
        others: list[ServedVersion] | None = None,
    ) -> ServedVersion:
        """The route to one version of a deployment: the main one, or a variant."""
        manifest = self._manifest(session, (row.project_id, *version))
        interface = interface_of(manifest)
        mine = [
            replica
            for replica in replicas
            if (replica.model, replica.version) == version
        ]
        return ServedVersion(
            deployment=row.name,
            project=project,
            model=version[0],
            version=version[1],
            task=manifest.task,
            output=interface.gives,
            grows=interface.streams,
            kind=interface.takes,
            also=tuple(interface.also),
            engine=options.engine or manifest.engine,
            # A deployment whose only worker was lost keeps its calls waiting for the next one.
            ready=row.loaded and (bool(mine) if variant else row.serving is not None),
            loaded=row.loaded,
            asleep=row.asleep,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            labels=manifest.labels,
            created=int(row.created.timestamp()),
            sockets=[replica.socket for replica in mine],
            batch=max((replica.batch for replica in mine), default=0),
            max_wait=options.max_wait_ms / 1e3,
            weight=variant.weight if variant else 0.0,
            shadow=variant.shadow if variant else False,
            error="" if variant else row.error,
            others=others or [],
        )

    def _manifest(self, session: Session, version: Known) -> Manifest:
        """The manifest of a version; cached, for versions are immutable."""
        found = self._manifests.get(version)
        if found is None:
            project, model, number = version
            query = select(Version).where(
                Version.project_id == project,
                Version.model == model,
                Version.number == number,
            )
            found = msgspec.convert(session.scalars(query).one().manifest, Manifest)
            self._manifests[version] = found
        return found

    def _refuse_other_signature(
        self, session: Session, row: Deployment, version: Version
    ) -> None:
        mine = self._manifest(session, (row.project_id, row.model, row.version))
        theirs = self._manifest(
            session, (row.project_id, version.model, version.number)
        )
        if (mine.task, [spec.name for spec in mine.inputs]) != (
            theirs.task,
            [spec.name for spec in theirs.inputs],
        ):
            raise Conflict(
                f"{version.model}:{version.number} takes other inputs than '{row.name}' serves"
            )

    @staticmethod
    def _find(session: Session, project: int, name: str) -> Deployment | None:
        query = select(Deployment).where(
            Deployment.project_id == project, Deployment.name == name
        )
        return session.scalars(query).first()

    def _named(self, session: Session, project: int, name: str) -> Deployment:
        row = self._find(session, project, name)
        if row is None:
            names = session.scalars(
                select(Deployment.name).where(Deployment.project_id == project)
            )
            raise unknown("deployment", name, names)
        return row

    @staticmethod
    def _variant(row: Deployment, version: int | None) -> dict[str, Any]:
        matching = [
            variant for variant in row.variants if version in (None, variant["version"])
        ]
        if len(matching) != 1:
            names = [
                f"{variant['model']}:{variant['version']}" for variant in row.variants
            ]
            raise Conflict(
                f"'{row.name}' has these canaries and shadows: {', '.join(names) or 'none'}; name "
                "the version that is meant"
            )
        return matching[0]


def options_of(row: Deployment) -> ServingOptions:
    """The serving options of a deployment."""
    return msgspec.convert(
        {"min_replicas": row.replicas, "max_replicas": row.replicas, **row.options},
        ServingOptions,
    )


def complete(row: Deployment, changed: dict[str, Any]) -> ServingOptions:
    """The options of a row with those of `changed` that are not None; raises `InvalidInput` for
    options that do not fit, and for an unknown engine.
    """
    given = {name: value for name, value in changed.items() if value is not None}
    if (replicas := given.pop("replicas", None)) is not None:
        given = {"min_replicas": replicas, "max_replicas": replicas, **given}
    before = options_of(row)
    if "min_replicas" in given and "max_replicas" not in given:
        given["max_replicas"] = max(before.max_replicas, given["min_replicas"], 1)
    options = msgspec.structs.replace(before, **given)
    if options.engine and options.engine not in plugins.names("engines"):
        raise unknown("engine", options.engine, plugins.names("engines"))
    if options.max_replicas < max(options.min_replicas, 1):
        raise InvalidInput(
            f"max_replicas is {options.max_replicas}: at least 1 and not below min_replicas "
            f"({options.min_replicas})"
        )
    return options
