"""A finished model brought from elsewhere, or a classifier made of an index: tried, then
registered.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from modelmill.jobs.kinds.base import INTAKE, JobStores, Kind, Order, Request
from modelmill.types import JobSpec, Json, check_name

if TYPE_CHECKING:
    from modelmill.control.db import Job
    from modelmill.jobs.process import Events, Stop


class RegisterRequest(Request, frozen=True, kw_only=True):
    """A model to bring."""

    name: Annotated[str, Meta(description="model to make a version of")]
    labels: Annotated[
        list[str], Meta(description="names of the classes, in order")
    ] = msgspec.field(default_factory=list)
    trust: Annotated[
        bool,
        Meta(description="take a file that may run code, such as model.pt2"),
    ] = False


class Register(Kind[RegisterRequest]):
    """Tries a model and makes it a version."""

    SUMMARY = "Bring a finished model."
    LANE = INTAKE
    FILE = "a bare model.onnx or model.pt2, or a zip of a bundle"
    Request = RegisterRequest

    def check(
        self, request: RegisterRequest, project: int, stores: JobStores
    ) -> None:
        """Raises for what is no name."""
        check_name("model", request.name)

    def order(
        self,
        request: RegisterRequest,
        project: int,
        stores: JobStores,
        upload: Path | None,
    ) -> Order:
        """The file waits in the store."""
        assert upload is not None
        digest = stores.artifacts.add_file(upload)
        settings: Json = {"upload": digest, "labels": request.labels}
        if request.trust:
            settings["trust"] = True
        return Order(model=request.name, settings=settings)

    def spec(self, row: "Job", draft: JobSpec, stores: JobStores) -> JobSpec:
        """With the file, and the model whose vectors it holds where it is made of an index."""
        settings = draft.settings
        if "model" in row.settings:
            base = stores.registry.get(row.project_id, row.settings["model"])
            settings = {**settings, "source": str(stores.registry.folder(base))}
        upload = str(stores.artifacts.path(row.settings["upload"]))
        return msgspec.structs.replace(draft, settings=settings, bundle=upload)

    def run(self, spec: JobSpec, events: "Events", stop: "Stop") -> Json:
        """Leaves a sealed bundle."""
        from modelmill.jobs.registering import register

        return register(spec, events, stop)

    def keep(self, row: "Job", result: Json, stores: JobStores) -> int:
        """The bundle becomes the model's next version; the file that was sent is dropped."""
        bundle = stores.folder(row.id) / "bundle"
        version = stores.registry.add(
            row.project_id, row.model, bundle, row.id, result["bundle"]
        )
        stores.artifacts.remove(row.settings["upload"])
        return version.number


KIND = Register()
