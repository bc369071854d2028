"""The admin API of indexes: items are added, searched and removed by what a deployed model makes of
them.
"""

import asyncio
import base64
import binascii
import json
import uuid
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from starlette.concurrency import run_in_threadpool

from modelmill.control import schemas, views
from modelmill.control.api_base import PREFIX, Control, ProjectId
from modelmill.control.indexes import Description
from modelmill.control.vector_index import Hit, NewItem
from modelmill.errors import InvalidInput, from_os
from modelmill.types import KeyInfo, check_name

BODY = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
    },
}
Label = Annotated[str | None, Query(max_length=schemas.LABEL)]


def add_indexes(api: FastAPI, control: Control) -> None:
    """Routes of indexes."""
    indexes = control.indexes

    @api.post(f"{PREFIX}/indexes", status_code=201, tags=["indexes"])
    def create(body: schemas.IndexRequest, project: ProjectId) -> schemas.IndexView:
        """Make an empty index of the vectors that a model computes from its inputs."""
        description = indexes.create(
            project, body.name, control.registry.get(project, body.model)
        )
        return _view(description, {})

    @api.get(f"{PREFIX}/indexes", tags=["indexes"])
    def all_indexes(project: ProjectId) -> list[schemas.IndexView]:
        """All indexes."""
        return [
            _view(description, indexes.get(project, description.name)[1].labels())
            for description in indexes.all(project)
        ]

    @api.get(f"{PREFIX}/indexes/{{name}}", tags=["indexes"])
    def one(name: str, project: ProjectId) -> schemas.IndexView:
        """One index."""
        description, index = indexes.get(project, name)
        return _view(description, index.labels())

    @api.delete(f"{PREFIX}/indexes/{{name}}", status_code=204, tags=["indexes"])
    def delete(name: str, project: ProjectId) -> None:
        """Remove an index with all its items."""
        indexes.delete(project, name)

    @api.post(
        f"{PREFIX}/indexes/{{name}}/classifier", status_code=202, tags=["indexes"]
    )
    def classifier(
        name: str, body: schemas.ClassifierRequest, project: ProjectId
    ) -> schemas.JobView:
        """Make a classifier of the current items: a job adds it as a version of a model."""
        check_name("model", body.name)
        description, index = indexes.get(project, name)
        version = control.registry.get(
            project, f"{description.model}:{description.version}"
        )
        vectors, labels = index.labelled()
        if not len(index):
            raise InvalidInput(
                f"index '{name}' is empty: add items with `modelmill index add {name} FOLDER`"
            )
        if len(set(labels)) < 2:
            raise InvalidInput(
                f"index '{name}' has items of {len(set(labels))} labels: a classifier needs at "
                "least 2 (LABEL/1.jpg in a folder has that label)"
            )
        settings = {
            "model": f"{version.model}:{version.number}",
            "index": name,
            "k": body.k,
        }
        upload = _store_items(control, vectors, labels)
        job = control.jobs.submit(
            project,
            "register",
            model=body.name,
            settings={**settings, "upload": upload},
        )
        return views.job_view(job)

    _add_items(api, control)
    _add_search(api, control)


def _add_items(api: FastAPI, control: Control) -> None:
    indexes = control.indexes

    @api.post(f"{PREFIX}/indexes/{{name}}/items", status_code=201, tags=["indexes"])
    async def add(
        name: str,
        body: schemas.ItemsRequest,
        request: Request,
        project: ProjectId,
        strict: Annotated[
            bool, Query(description="false: leave out items that can't be read")
        ] = True,
    ) -> schemas.ItemsAdded:
        """Add items: all of them or none, or those that can be read. They are on disk when this is
        answered.
        """
        description, index = await run_in_threadpool(indexes.get, project, name)
        refused: list[schemas.ItemRefused] = []
        inputs: dict[int, bytes] = {}
        for number, item in enumerate(body.items):
            try:
                inputs[number] = _bytes(item.input, number)
            except InvalidInput as error:
                if strict:
                    raise
                refused.append(schemas.ItemRefused(item=number, error=error.message))
        caller, data = request.state.caller, list(inputs.values())
        if strict:
            vectors = await _embedded(control, caller, description, data)
        else:
            vectors = await _embedded_each(control, caller, description, data)
        new_items = []
        for number, vector in zip(inputs, vectors, strict=True):
            if isinstance(vector, InvalidInput):
                why = vector.message
                refused.append(schemas.ItemRefused(item=number, error=why))
            else:
                item = body.items[number]
                new_items.append(NewItem(vector, item.label, json.dumps(item.metadata)))
        ids = await run_in_threadpool(index.add, new_items) if new_items else []
        refused.sort(key=lambda refusal: refusal.item)
        return schemas.ItemsAdded(ids=ids, refused=refused)

    @api.get(f"{PREFIX}/indexes/{{name}}/items", tags=["indexes"])
    def items(
        name: str,
        project: ProjectId,
        label: Label = None,
        offset: Annotated[int, Query(ge=0, le=1 << 53)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> list[schemas.ItemView]:
        """Items in the order in which they came."""
        items_found = indexes.get(project, name)[1].items(label, offset, limit)
        return [
            schemas.ItemView(
                id=item.id, label=item.label, metadata=json.loads(item.metadata)
            )
            for item in items_found
        ]

    @api.delete(f"{PREFIX}/indexes/{{name}}/items", tags=["indexes"])
    def remove_label(
        name: str,
        project: ProjectId,
        label: Annotated[str, Query(max_length=schemas.LABEL)],
    ) -> schemas.ItemsRemoved:
        """Remove all items of a label."""
        return schemas.ItemsRemoved(
            removed=indexes.get(project, name)[1].remove(label=label)
        )

    @api.delete(f"{PREFIX}/indexes/{{name}}/items/{{id}}", tags=["indexes"])
    def remove(name: str, id: int, project: ProjectId) -> schemas.ItemsRemoved:
        """Remove one item by its number."""
        return schemas.ItemsRemoved(removed=indexes.get(project, name)[1].remove(id=id))


def _add_search(api: FastAPI, control: Control) -> None:
    @api.post(
        f"{PREFIX}/indexes/{{name}}/search",
        tags=["indexes"],
        openapi_extra={"requestBody": BODY},
    )
    async def search(
        name: str,
        request: Request,
        project: ProjectId,
        k: Annotated[int, Query(ge=1, le=1000)] = 5,
    ) -> list[schemas.HitView]:
        """The items most similar to the body, such as the bytes of a picture file. Any key may call
        this.
        """
        description, index = await run_in_threadpool(control.indexes.get, project, name)
        data = await request.body()
        if not data:
            raise InvalidInput(
                "the body is empty: send what to search for, such as the bytes of a picture file"
            )
        (vector,) = await _embedded(control, request.state.caller, description, [data])
        return [_hit(hit) for hit in await run_in_threadpool(index.search, vector, k)]


async def _embedded(
    control: Control, caller: KeyInfo, description: Description, inputs: list[bytes]
) -> list[Any]:
    """The vector of each input by the index's version; raises the error of the first that fails."""
    results = await _embedded_each(control, caller, description, inputs)
    for number, result in enumerate(results):
        if isinstance(result, InvalidInput) and len(inputs) > 1:
            raise type(result)(f"item {number}: {result}") from result
        if isinstance(result, InvalidInput):
            raise result
    return results


async def _embedded_each(
    control: Control, caller: KeyInfo, description: Description, inputs: list[bytes]
) -> list[Any]:
    """The vector of each input, or what it was refused for; raises what is not about an input."""
    calls = [
        control.embed(caller, description.model, description.version, data)
        for data in inputs
    ]
    # All are waited for: none goes on unseen when another one has failed.
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, InvalidInput):
            raise result
    return list(results)


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


def _bytes(text: str, number: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"item {number}: input is not valid base64") from error


def _view(description: Description, labels: dict[str, int]) -> schemas.IndexView:
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
