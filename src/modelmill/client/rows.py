"""Answers of the platform: plain dictionaries with these fields."""

from collections.abc import Callable
from typing import Any, TypedDict

Json = dict[str, Any]
OnEvent = Callable[[Json], None]


class Job(TypedDict):
    """A job; `state` is queued, running, interrupted, succeeded, failed or cancelled."""

    job: int
    kind: str
    state: str
    model: str
    version: int | None
    task: str
    recipe: str
    dataset: str
    settings: Json
    metrics: Json
    result: Json
    error: str
    pid: int | None
    created: str
    started: str | None
    ended: str | None


class Dataset(TypedDict):
    """A data set with the findings of its check."""

    name: str
    task: str
    format: str
    state: str
    digest: str
    items: int
    classes: dict[str, int]
    splits: dict[str, int]
    findings: list[Json]
    created: str


class Version(TypedDict):
    """An immutable version of a model; `files` maps names to sha256."""

    name: str
    version: int
    task: str
    digest: str
    aliases: list[str]
    metrics: Json
    labels: list[str]
    inputs: list[Json]
    outputs: list[Json]
    preprocessing: Json
    files: dict[str, str]
    lineage: Json
    batches: str
    created: str
    parameters: list[Json]


class Deployment(TypedDict):
    """A deployment; `state` is loading, ready, asleep, unloaded or failed, `serving` the version
    that answers now.
    """

    task: str
    note: str
    options: Json
    variants: list[Json]
    memory: int
    batch: int
    batches: str

    name: str
    model: str
    version: int
    replicas: int
    ready_replicas: int
    state: str
    serving: int | None
    error: str
    created: str


class Key(TypedDict):
    """An access key; `rate` in requests a second (0: no limit). The key itself is shown by
    `add_key` alone.
    """

    name: str
    role: str
    rate: float
    burst: int
    created: str


class NewKey(Key):
    """A new access key, with the `key` itself."""

    key: str


class Index(TypedDict):
    """An index of the vectors of a model's version; `labels` counts the items of each label."""

    name: str
    model: str
    version: int
    dimensions: int
    items: int
    labels: dict[str, int]
    created: str


class Hit(TypedDict):
    """An item found by a search; `score` is the cosine similarity, 1 for the same direction."""

    id: int
    label: str
    score: float
    metadata: Json


class Prediction(TypedDict):
    """An input and the model's answer to it."""

    input: str
    output: Any
