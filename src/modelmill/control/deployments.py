"""Deployments: the desired state of what is served under each name, and the routes of gateways."""

from typing import Any

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from modelmill.control.db import (
    ROUTES,
    Database,
    Deployment,
    Replica,
    Version,
    bump,
)
from modelmill.control.options import complete
from modelmill.control.registry import Registry
from modelmill.control.routes import Manifests, Routes, by_deployment
from modelmill.errors import Conflict, InvalidInput, unknown
from modelmill.types import Manifest, Snapshot, Variant


class Deployments:
    """Rows of deployments, for the API and the gateways."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database = database
        self._registry = registry
        self._manifests = Manifests()
        self._routes = Routes(self._manifests)

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
            row = self._find(session, project, name) or _new(
                session, project, name
            )
            _make_main(row, version.model, version.number)
            options = complete(row, changed)
            row.options = msgspec.to_builtins(options)
            row.replicas = max(options.min_replicas, 1)
            row.loaded = True
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
            given = {
                key: value for key, value in fields.items() if value is not None
            }
            variant = Variant(
                model=version.model, version=version.number, **given
            )
            _add_beside(row, variant)
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
            _make_main(row, chosen["model"], chosen["version"])
            bump(session, ROUTES)
        return row

    def drop_variants(
        self,
        project: int,
        name: str,
        version: int | None = None,
        note: str = "",
    ) -> Deployment:
        """Remove all canaries and shadows, or one version; raises `Conflict` when there is none."""
        with self._database.session() as session:
            row = self._named(session, project, name)
            remaining: list[dict[str, Any]] = []
            if version is not None or not row.variants:
                chosen = self._variant(row, version)
                remaining = [
                    variant for variant in row.variants if variant != chosen
                ]
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
            session.execute(
                delete(Replica).where(Replica.deployment_id == row.id)
            )
            session.execute(delete(Deployment).where(Deployment.id == row.id))
            bump(session, ROUTES)

    # ---- queries

    def all(self, project: int) -> list[Deployment]:
        """All of a project, by name."""
        query = select(Deployment).where(Deployment.project_id == project)
        return self._database.all(query.order_by(Deployment.name))

    def get(self, project: int, name: str) -> Deployment:
        """One by name; raises `NotFound` naming those that exist."""
        with self._database.session() as session:
            return self._named(session, project, name)

    def replicas(self, project: int) -> dict[int, list[Replica]]:
        """The workers of each deployment, by its number."""
        query = select(Replica).where(Replica.project_id == project)
        return by_deployment(self._database.all(query))

    def snapshot(self, known: Snapshot | None) -> Snapshot | None:
        """Routes and keys for a gateway, or None when nothing has changed since its snapshot
        `known`.
        """
        with self._database.session() as session:
            return self._routes.snapshot(session, known)

    # ---- rows

    def _refuse_other_signature(
        self, session: Session, row: Deployment, version: Version
    ) -> None:
        mine = self._manifests.get(
            session, (row.project_id, row.model, row.version)
        )
        theirs = self._manifests.get(
            session, (row.project_id, version.model, version.number)
        )
        if (mine.task, _input_names(mine)) != (
            theirs.task,
            _input_names(theirs),
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
            variant
            for variant in row.variants
            if version in (None, variant["version"])
        ]
        if len(matching) != 1:
            names = [
                f"{variant['model']}:{variant['version']}"
                for variant in row.variants
            ]
            raise Conflict(
                f"'{row.name}' has these canaries and shadows: {', '.join(names) or 'none'}; name "
                "the version that is meant"
            )
        return matching[0]


def _new(session: Session, project: int, name: str) -> Deployment:
    """A deployment that serves nothing yet."""
    row = Deployment(project_id=project, name=name, replicas=1)
    row.options = {}
    row.variants = []
    session.add(row)
    return row


def _make_main(row: Deployment, model: str, version: int) -> None:
    """Let a version answer; it is no canary or shadow any more."""
    row.variants = _others(row, model, version)
    row.model = model
    row.version = version
    row.error = ""
    row.note = ""
    row.asleep = False


def _others(row: Deployment, model: str, version: int) -> list[dict[str, Any]]:
    """The canaries and shadows that are not of this version."""
    return [
        variant
        for variant in row.variants
        if (variant["model"], variant["version"]) != (model, version)
    ]


def _add_beside(row: Deployment, variant: Variant) -> None:
    """Add a canary or shadow, or change it; raises `InvalidInput` for too much weight."""
    others = _others(row, variant.model, variant.version)
    total = sum(other["weight"] for other in others) + variant.weight
    if total > 1 + 1e-9:  # sums of tenths are not exact
        raise InvalidInput(
            f"the canaries of '{row.name}' would get more than all requests"
        )
    row.variants = [*others, msgspec.to_builtins(variant)]
    row.note = ""


def _input_names(manifest: Manifest) -> list[str]:
    return [spec.name for spec in manifest.inputs]
