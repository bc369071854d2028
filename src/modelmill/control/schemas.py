"""The shapes of the admin API, for OpenAPI and validation."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
)

from modelmill.tasks.base import usual_name


class Body(BaseModel):
    """A request: names that nothing reads are refused."""

    model_config = ConfigDict(extra="forbid")


TaskName = Annotated[str, AfterValidator(usual_name)]
"""Of a request: `sentence-similarity` is read as `feature-extraction`, which it is."""


class DeployRequest(Body):
    """A version to serve."""

    model: str = Field(description="NAME[:VERSION|@ALIAS]")
    name: str = Field("", description="deployment; empty: the model's name")
    replicas: int | None = Field(
        None, ge=1, le=64, description="workers, fixed; empty: as it is, else 1"
    )
    min_replicas: int | None = Field(
        None,
        ge=0,
        le=64,
        description="fewest workers; 0: none while nobody calls",
    )
    max_replicas: int | None = Field(
        None, ge=1, le=64, description="most workers, by the queue's delay"
    )
    idle_seconds: float | None = Field(
        None, gt=0, description="without a call, before the last worker goes"
    )
    target_delay_ms: float | None = Field(
        None,
        gt=0,
        description="wait in the queue that calls for one more worker",
    )
    threads: int | None = Field(
        None,
        ge=0,
        le=256,
        description="of the engine in each worker; 0: share the cores",
    )
    engine: str | None = Field(
        None, description="engine, where it is not to be the bundle's own"
    )
    precision: str | None = Field(
        None, description="such as bf16 or int8, where the engine offers it"
    )
    max_wait_ms: float | None = Field(
        None, ge=0, le=10_000, description="wait for a fuller batch"
    )
    batch: int | None = Field(
        None,
        ge=0,
        le=4096,
        description="most calls that share a batch; 1: none do; 0: what the model gains from",
    )
    canary: float | None = Field(
        None,
        gt=0,
        le=100,
        description="serve beside the main version: percent of requests",
    )
    shadow: bool = Field(
        False,
        description="serve beside the main version: copies of its requests, answers dropped",
    )
    max_error_rate: float | None = Field(
        None, ge=0, le=1, description="of a canary, before it is rolled back"
    )
    max_slowdown: float | None = Field(
        None, ge=1, description="of a canary against the main version, likewise"
    )


class AliasRequest(Body):
    """A version to give a name to."""

    model: str = Field(description="NAME:VERSION")
    alias: str


class KeyRequest(Body):
    """A key to make."""

    name: str = Field(description="who or what will use it")
    role: Literal["admin", "user"] = Field(
        "user", description="user: predict and look; admin: everything"
    )
    rate: float = Field(
        0,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="requests a second; 0: no limit",
    )
    burst: int = Field(
        0,
        ge=0,
        le=10**6,
        description="requests that may come at once; 0: a second's worth",
    )


class KeyView(BaseModel):
    """A key; the key itself is not kept."""

    name: str
    role: str
    rate: float = Field(description="requests a second; 0: no limit")
    burst: int = Field(description="requests that may come at once")
    created: datetime


class KeyMade(KeyView):
    """A new key."""

    key: str = Field(description="the key itself, shown this once")


class DatasetView(BaseModel):
    """A data set."""

    name: str
    task: str
    format: str
    state: str = Field(description="checking or ready")
    digest: str
    items: int
    classes: dict[str, int]
    splits: dict[str, int]
    findings: list[dict[str, Any]]
    created: datetime


class DatasetAdded(BaseModel):
    """What an upload began."""

    name: str
    job: int | None = Field(
        description="the job that checks it; null when the very same set was there"
    )


class JobView(BaseModel):
    """A job."""

    job: int
    kind: str
    state: str
    model: str
    version: int | None
    task: str
    recipe: str
    dataset: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    result: dict[str, Any]
    error: str
    pid: int | None
    created: datetime
    started: datetime | None
    ended: datetime | None


class Chunk(BaseModel):
    """A part of a growing file."""

    text: str
    offset: int = Field(description="where the next part begins")
    state: str


class VersionView(BaseModel):
    """A version of a model."""

    name: str
    version: int
    task: str
    digest: str
    aliases: list[str]
    metrics: dict[str, Any]
    labels: list[str]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    preprocessing: dict[str, Any]
    files: dict[str, str]
    lineage: dict[str, Any]
    batches: str = Field(
        description="whether calls share batches, as found when it was sealed; empty: not tried"
    )
    created: datetime
    parameters: list[dict[str, Any]] = Field(
        default_factory=list,
        description="what a call may choose: name, default, what is allowed, help; only where "
        "one version is asked for",
    )


class VariantView(BaseModel):
    """A canary or a shadow."""

    model: str
    version: int
    weight: float
    shadow: bool
    ready_replicas: int


class DeploymentView(BaseModel):
    """A deployment."""

    name: str
    model: str
    version: int
    task: str = Field(
        description="empty for a model that takes and gives tensors only"
    )
    replicas: int
    ready_replicas: int
    state: str = Field(
        description="loading, ready, asleep (wakes when called), unloaded, failed"
    )
    serving: int | None = Field(description="the version that answers now")
    error: str
    note: str = Field(
        description="what happened by itself, such as the rollback of a canary"
    )
    options: dict[str, Any]
    variants: list[VariantView]
    memory: int = Field(description="bytes that its workers hold")
    batch: int = Field(
        description="most calls that share a batch, as its workers found; 0: not known"
    )
    batches: str = Field(
        description="the same in words, with the reason where it is 1"
    )
    created: datetime


class RecipeView(BaseModel):
    """A recipe and its settings."""

    name: str
    summary: str
    default: bool
    settings: list[dict[str, Any]]


class KindView(BaseModel):
    """A kind of jobs."""

    name: str
    summary: str
    file: str = Field(
        description="what is sent with the request; empty: nothing"
    )
    request: dict[str, Any] = Field(
        description="what may be asked, as a JSON schema"
    )


class TaskView(BaseModel):
    """A task."""

    name: str
    summary: str
    input: str = Field(description="the kind of what callers send")
    also: list[str] = Field(description="further kinds that they may send")
    output: str = Field(description="the kind of an answer")
    recipes: list[str]
    formats: list[str]
    parameters: list[dict[str, Any]] = Field(
        description="what a call may choose: name, default, what is allowed, help"
    )


LABEL = 200
"""Most characters of a label."""
METADATA = 1 << 14
"""Most bytes of an item's metadata."""


class IndexRequest(Body):
    """An index to make."""

    name: str
    model: str = Field(
        description="NAME[:VERSION|@ALIAS] of a model that answers vectors; it has to be deployed "
        "to add"
    )


class ClassifierRequest(Body):
    """A classifier to make of an index."""

    name: str = Field(description="model to make a version of")
    k: int = Field(
        5, ge=1, le=1000, description="nearest neighbours that share the score"
    )


class ItemRequest(Body):
    """An item to add to an index."""

    input: str = Field(
        min_length=1,
        description="what the model takes, such as the bytes of a picture file, as base64",
    )
    label: str = Field("", max_length=LABEL)
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="kept with it and given back"
    )

    @field_validator("metadata")
    @classmethod
    def _sendable(cls, value: dict[str, Any]) -> dict[str, Any]:
        """What can be given back as JSON, and is not too long."""
        try:
            size = len(
                json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
            )
        except ValueError as error:  # NaN, or a lone surrogate
            raise ValueError(
                "only finite numbers and whole characters can be kept"
            ) from error
        if size > METADATA:
            raise ValueError(
                f"at most {METADATA:,} bytes of JSON are kept with an item, not {size:,}"
            )
        return value


class ItemsRequest(Body):
    """Items to add to an index."""

    items: list[ItemRequest] = Field(min_length=1, max_length=256)


class ItemRefused(BaseModel):
    """An item that was left out."""

    item: int = Field(description="its place in the request, from 0")
    error: str


class ItemsAdded(BaseModel):
    """The numbers of the items that were added, in their order."""

    ids: list[int]
    refused: list[ItemRefused] = Field(
        description="items that were left out; none where the request is strict"
    )


class ItemsRemoved(BaseModel):
    """How many items were removed."""

    removed: int


class IndexView(BaseModel):
    """An index."""

    name: str
    model: str
    version: int = Field(
        description="the version of the model whose vectors it holds"
    )
    dimensions: int
    items: int
    labels: dict[str, int] = Field(description="items of each label")
    created: datetime


class ItemView(BaseModel):
    """An item of an index."""

    id: int
    label: str
    metadata: dict[str, Any]


class HitView(ItemView):
    """An item that was found."""

    score: float = Field(
        description="cosine similarity: 1 for the same direction"
    )


class Problem(BaseModel):
    """An error of the admin API."""

    error: str
    code: str
