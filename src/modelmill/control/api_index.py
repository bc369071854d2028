"""The admin API of indexes: items are added, searched and removed by what a deployed model makes of
them.
"""

import asyncio
import base64
import binascii
import json
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from modelmill.control import schemas, views
from modelmill.control.api_base import (
    BINARY,
    PREFIX,
    Control,
    ControlOf,
    ProjectId,
    body_of,
)
from modelmill.control.indexes import Description
from modelmill.control.vector_index import Hit, NewItem, VectorIndex
from modelmill.errors import InvalidInput, from_os
from modelmill.types import KeyInfo, check_name

router = APIRouter(prefix=PREFIX, tags=["indexes"])
Label = Annotated[str | None, Query(max_length=schemas.LABEL)]
STRICT = Query(description="false: leave out items that can't be read")

Refused = dict[int, InvalidInput]
"""Why items were refused, by their number."""
Vector = Sequence[float]


@router.post("/indexes", status_code=201)
def create(
    body: schemas.IndexRequest, control: ControlOf, project: ProjectId
) -> schemas.IndexView:
    """Make an empty index of the vectors that a model computes from its inputs."""
    version = control.registry.get(project, body.model)
    return _view(control.indexes.create(project, body.name, version), {})


@router.get("/indexes")
def all_indexes(
    control: ControlOf, project: ProjectId
) -> list[schemas.IndexView]:
    """All indexes."""
    indexes = control.indexes
    return [
        _view(description, indexes.get(project, description.name)[1].labels())
        for description in indexes.all(project)
    ]


@router.get("/indexes/{name}")
def one(name: str, control: ControlOf, project: ProjectId) -> schemas.IndexView:
    """One index."""
    description, index = control.indexes.get(project, name)
    return _view(description, index.labels())


@router.delete("/indexes/{name}", status_code=204)
def delete(name: str, control: ControlOf, project: ProjectId) -> None:
    """Remove an index with all its items."""
    control.indexes.delete(project, name)


@router.post("/indexes/{name}/classifier", status_code=202)
def classifier(
    name: str,
    body: schemas.ClassifierRequest,
    control: ControlOf,
    project: ProjectId,
) -> schemas.JobView:
    """Make a classifier of the current items: a job adds it as a version of a model."""
    check_name("model", body.name)
    description, index = control.indexes.get(project, name)
    version = control.registry.get(
        project, f"{description.model}:{description.version}"
    )
    vectors, labels = index.labelled()
    _refuse_few_labels(name, index, labels)
    settings = {
        "model": f"{version.model}:{version.number}",
        "index": name,
        "k": body.k,
        "upload": _store_items(control, vectors, labels),
    }
    job = control.jobs.submit(
        project, "register", model=body.name, settings=settings
    )
    return views.job_view(job)


# ---- items


@router.post("/indexes/{name}/items", status_code=201)
async def add(
    name: str,
    body: schemas.ItemsRequest,
    request: Request,
    control: ControlOf,
    project: ProjectId,
    strict: Annotated[bool, STRICT] = True,
) -> schemas.ItemsAdded:
    """Add items: all of them or none, or those that can be read. They are on disk when this is
    answered.
    """
    description, index = await run_in_threadpool(
        control.indexes.get, project, name
    )
    inputs, refused = _inputs(body.items)
    embedder = Embedder(control, request.state.caller, description)
    if strict:
        _raise_first(refused)
        vectors = await embedder.all_of(inputs)
    else:
        vectors, not_read = await embedder.each(inputs)
        refused |= not_read
    items = [
        _new_item(body.items[number], vectors[number]) for number in vectors
    ]
    ids = await run_in_threadpool(index.add, items) if items else []
    return schemas.ItemsAdded(ids=ids, refused=_refusals(refused))


@router.get("/indexes/{name}/items")
def items(
    name: str,
    control: ControlOf,
    project: ProjectId,
    label: Label = None,
    offset: Annotated[int, Query(ge=0, le=1 << 53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[schemas.ItemView]:
    """Items in the order in which they came."""
    found = control.indexes.get(project, name)[1].items(label, offset, limit)
    return [
        schemas.ItemView(
            id=item.id, label=item.label, metadata=json.loads(item.metadata)
        )
        for item in found
    ]


@router.delete("/indexes/{name}/items")
def remove_label(
    name: str,
    control: ControlOf,
    project: ProjectId,
    label: Annotated[str, Query(max_length=schemas.LABEL)],
) -> schemas.ItemsRemoved:
    """Remove all items of a label."""
    _, index = control.indexes.get(project, name)
    return schemas.ItemsRemoved(removed=index.remove(label=label))


@router.delete("/indexes/{name}/items/{id}")
def remove(
    name: str, id: int, control: ControlOf, project: ProjectId
) -> schemas.ItemsRemoved:
    """Remove one item by its number."""
    _, index = control.indexes.get(project, name)
    return schemas.ItemsRemoved(removed=index.remove(id=id))


# ---- search


@router.post("/indexes/{name}/search", openapi_extra=body_of(BINARY))
async def search(
    name: str,
    request: Request,
    control: ControlOf,
    project: ProjectId,
    k: Annotated[int, Query(ge=1, le=1000)] = 5,
) -> list[schemas.HitView]:
    """The items most similar to the body, such as the bytes of a picture file. Any key may call
    this.
    """
    description, index = await run_in_threadpool(
        control.indexes.get, project, name
    )
    data = await request.body()
    if not data:
        raise InvalidInput(
            "the body is empty: send what to search for, such as the bytes of a picture file"
        )
    embedder = Embedder(control, request.state.caller, description)
    (vector,) = await embedder.all([data])
    return [
        _hit(hit) for hit in await run_in_threadpool(index.search, vector, k)
    ]


class Embedder:
    """Computes vectors by the version that an index was made for, as calls of a caller."""

    def __init__(
        self, control: Control, caller: KeyInfo, description: Description
    ) -> None:
        self._control = control
        self._caller = caller
        self._description = description

    async def all_of(self, inputs: dict[int, bytes]) -> dict[int, Vector]:
        """The vector of each input, by its number; raises the error of the first that fails."""
        vectors = await self.all(list(inputs.values()))
        return dict(zip(inputs, vectors, strict=True))

    async def all(self, inputs: list[bytes]) -> list[Vector]:
        """The vector of each input; raises the error of the first that fails."""
        vectors: list[Vector] = []
        for number, result in enumerate(await self._results(inputs)):
            if not isinstance(result, InvalidInput):
                vectors.append(result)
            elif len(inputs) == 1:
                raise result
            else:
                raise type(result)(f"item {number}: {result}") from result
        return vectors

    async def each(
        self, inputs: dict[int, bytes]
    ) -> tuple[dict[int, Vector], Refused]:
        """The vectors of the inputs that can be read, and why the others can't."""
        vectors: dict[int, Vector] = {}
        refused: Refused = {}
        results = await self._results(list(inputs.values()))
        for number, result in zip(inputs, results, strict=True):
            if isinstance(result, InvalidInput):
                refused[number] = result
            else:
                vectors[number] = result
        return vectors, refused

    async def _results(
        self, inputs: list[bytes]
    ) -> list[Vector | InvalidInput]:
        """The vector of each input, or what it was refused for; raises what is not about an
        input.
        """
        model, version = self._description.model, self._description.version
        calls = [
            self._control.embed(self._caller, model, version, data)
            for data in inputs
        ]
        # All are waited for: none goes on unseen when another one has failed.
        results = await asyncio.gather(*calls, return_exceptions=True)
        return [_about_input(result) for result in results]


def _about_input(result: Vector | BaseException) -> Vector | InvalidInput:
    if isinstance(result, BaseException) and not isinstance(
        result, InvalidInput
    ):
        raise result
    return result


def _inputs(
    items: list[schemas.ItemRequest],
) -> tuple[dict[int, bytes], Refused]:
    """The bytes of the items by their number, and why others have none."""
    inputs: dict[int, bytes] = {}
    refused: Refused = {}
    for number, item in enumerate(items):
        try:
            inputs[number] = base64.b64decode(item.input, validate=True)
        except (binascii.Error, ValueError):
            refused[number] = InvalidInput(
                f"item {number}: input is not valid base64"
            )
    return inputs, refused


def _raise_first(refused: Refused) -> None:
    for error in refused.values():
        raise error


def _refusals(refused: Refused) -> list[schemas.ItemRefused]:
    return [
        schemas.ItemRefused(item=number, error=refused[number].message)
        for number in sorted(refused)
    ]


def _new_item(item: schemas.ItemRequest, vector: Vector) -> NewItem:
    return NewItem(vector, item.label, json.dumps(item.metadata))


def _refuse_few_labels(
    name: str, index: VectorIndex, labels: list[str]
) -> None:
    if not len(index):
        raise InvalidInput(
            f"index '{name}' is empty: add items with `modelmill index add {name} FOLDER`"
        )
    if (count := len(set(labels))) < 2:
        raise InvalidInput(
            f"index '{name}' has items of {count} labels: a classifier needs at "
            "least 2 (LABEL/1.jpg in a folder has that label)"
        )


def _store_items(control: Control, vectors: Any, labels: list[str]) -> str:
    """Store the items of an index as a file; returns its digest."""
    folder = control.jobs.home / "uploads"
    path = folder / uuid.uuid4().hex
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez(file, vectors=vectors, labels=np.array(labels))
        return control.artifacts.add_file(path)
    except OSError as error:
        raise from_os(error, "writing the items of the index") from error
    finally:
        path.unlink(missing_ok=True)


def _view(
    description: Description, labels: dict[str, int]
) -> schemas.IndexView:
    return schemas.IndexView(
        name=description.name,
        model=description.model,
        version=description.version,
        dimensions=description.dimensions,
        items=sum(labels.values()),
        labels=labels,
        created=description.created,
    )


def _hit(hit: Hit) -> schemas.HitView:
    return schemas.HitView(
        id=hit.id,
        label=hit.label,
        score=round(hit.score, 6),
        metadata=json.loads(hit.metadata),
    )
