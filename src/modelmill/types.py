"""The nouns that all packages share: frozen structs that cross processes as JSON or MessagePack."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from modelmill.errors import InvalidInput

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
"""Names of data sets, models, deployments and aliases: they become paths and URLs, so they are
strict.
"""

Json = dict[str, Any]
ENDED: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
"""States of a job that do not change by themselves; the others are queued, running and
interrupted.
"""
ALONE = "calls are answered one at a time"
"""The message, before its reason, where calls share no batch."""
BY_HAND = "the deployment is set to a batch of 1"
"""The reason where the options say so."""
WEIGHTS = "model.safetensors"
"""The file of a bundle with the weights, from which a training can start."""
RESULT = "result.json"
"""What a job leaves in its folder, and its supervisor takes in."""


class Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of all nouns: immutable, with named fields only."""


class TensorSpec(Struct, frozen=True, kw_only=True):
    """An input or output of a model; `datatype` as in the Open Inference Protocol, dynamic axes are
    -1.
    """

    name: str
    datatype: str
    shape: list[int]


class Ancestor(Struct, frozen=True, kw_only=True):
    """A version that a training started from."""

    name: str
    digest: str
    task: str
    dataset: str


class Lineage(Struct, frozen=True, kw_only=True):
    """The origin of a version: data, recipe, settings and seed, enough to reproduce it.

    `chain` are the versions that its training started from, the direct one last.
    """

    dataset: str
    data_digest: str
    recipe: str
    settings: Json
    seed: int
    code_version: str
    job: int
    created: str
    chain: list[Ancestor] = msgspec.field(default_factory=list)


class Manifest(Struct, frozen=True, kw_only=True):
    """What a bundle is. It is written last: its existence means that the bundle is complete.

    An empty `task` stands for a model without one: it takes and gives the engine's tensors, nothing
    else. `batches` says whether calls share batches, as it was found before it was sealed (empty:
    not tried); workers try it again. `trusted`: who brought the model vouches for it, though its
    files may run code. `takes`, `also_takes` and `gives` are kinds of input and output
    (`tasks.kinds`), and `streams` says whether answers are written token by token: what serving
    needs to know of the task. They are empty in bundles of before.
    """

    task: str
    engine: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    preprocessing: Json
    labels: list[str]
    lineage: Lineage
    metrics: Json = msgspec.field(default_factory=dict)
    batches: str = ""
    trusted: bool = False
    takes: str = ""
    also_takes: list[str] | None = None
    gives: str = ""
    streams: bool = False
    files: dict[str, str] = msgspec.field(default_factory=dict)
    schema: int = 1


class JobSpec(Struct, frozen=True, kw_only=True):
    """The specification of a job process: everything it needs, so that it never reads the database.

    `kind` is a plug-in of `jobs.kinds`. `base` names the version whose `bundle` a training starts
    from.
    """

    job: int
    kind: str
    folder: str
    threads: int
    name: str = ""
    task: str = ""
    dataset: Json = msgspec.field(default_factory=dict)
    recipe: str = ""
    settings: Json = msgspec.field(default_factory=dict)
    bundle: str = ""
    base: str = ""
    split: str = "test"
    cache: str = ""


class WorkerSpec(Struct, frozen=True, kw_only=True):
    """The specification of a worker process. `threads` are for the engine, `decoders` for pictures
    and the like. `digest` is that of the registered manifest; where it is empty nothing is
    compared. `batch` is as in `ServingOptions`.
    """

    deployment: str
    model: str
    version: int
    bundle: str
    socket: str
    threads: int
    decoders: int = 1
    engine: str = ""
    precision: str = ""
    digest: str = ""
    batch: int = 0


class GatewaySpec(Struct, frozen=True, kw_only=True):
    """The specification of a gateway process: all settings, and the descriptors of its sockets."""

    settings: Json
    descriptor: int
    grpc_descriptor: int


class ServingOptions(Struct, frozen=True, kw_only=True):
    """Options of a deployment.

    Between `min_replicas` and `max_replicas` the number of workers follows the queue: one more
    while calls wait longer than `target_delay_ms`. With a minimum of 0 the last one goes after
    `idle_seconds` without a call. `threads` of 0 shares the cores among all workers. An empty
    `engine` is the bundle's own. At most `batch` calls share a batch (1: none do; 0: as many as
    the model gains from).
    """

    min_replicas: int = 1
    max_replicas: int = 1
    idle_seconds: float = 300.0
    target_delay_ms: float = 100.0
    threads: int = 0
    engine: str = ""
    precision: str = ""
    max_wait_ms: float = 0.0
    batch: int = 0


class Variant(Struct, frozen=True, kw_only=True):
    """A version beside the main one: a canary with a share of the requests, or a shadow with
    copies.

    A canary is rolled back when, after `min_requests`, more than `max_error_rate` of its requests
    failed beyond the main version's, or when it is `max_slowdown` times slower.
    """

    model: str
    version: int
    weight: float = 0.0
    shadow: bool = False
    max_error_rate: float = 0.05
    max_slowdown: float = 3.0
    min_requests: int = 20


class ServedVersion(Struct, frozen=True, kw_only=True):
    """The gateway's route to one version of a deployment: its workers, inputs and outputs.

    `kind` is what the task takes as it is sent (image, text), or `tensor` for a model without a
    task, and `also` are further kinds that it takes; `output` is what its answer can be sent as
    (json, or image where it is a picture). The route of the main version carries those of canaries
    and shadows in `others`; each has a `weight` (its share of the requests, 0 to 1), and a shadow
    gets copies whose answers are dropped. `batch` is how many rows a worker gains from (0: not
    measured), `max_wait` how many seconds a call may wait for others. A deployment that is `asleep`
    has no worker until it is called; one that is not `loaded` answers nobody. `created` is in
    seconds since 1970. Where answers `grow` token by token, `batch` is how many of them a worker
    has at a time.
    """

    deployment: str
    project: str
    model: str
    version: int
    task: str
    kind: str
    ready: bool
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    sockets: list[str]
    labels: list[str] = msgspec.field(default_factory=list)
    error: str = ""
    engine: str = "onnx"
    loaded: bool = True
    asleep: bool = False
    weight: float = 0.0
    shadow: bool = False
    batch: int = 0
    max_wait: float = 0.0
    others: list["ServedVersion"] = msgspec.field(default_factory=list)
    created: int = 0
    output: str = "json"
    grows: bool = False
    also: tuple[str, ...] = ()


Usage = Mapping[str, int | float]
"""What a call used beside being one request, by unit: `prompt_tokens` and `completion_tokens`,
`pixels`, `audio_seconds`, `compute_seconds`. To be read: answers of one batch may share it.
"""


class StreamPart(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One token of an answer that is streamed, and the `text` that can be shown since the last one.

    `number` counts the tokens of the answer from 1, `at` its characters before this text. `logprob`
    is there where it was asked for. The last part has a `finish_reason` (OpenAI's word, `length` or
    `stop`), and `ended_by` is the same in Hugging Face's words.
    """

    number: int
    token: int
    text: str
    at: int
    prompt_tokens: int
    special: bool = False
    logprob: Json | None = None
    finish_reason: str = ""
    ended_by: str = ""


class Snapshot(Struct, frozen=True, kw_only=True):
    """All routes and keys, in a gateway's memory; `revision` counts changes of routes, then of
    keys.
    """

    revision: tuple[int, int]
    routes: dict[str, ServedVersion]
    keys: dict[str, "KeyInfo"]


class KeyInfo(Struct, frozen=True, kw_only=True):
    """A caller's key, by its digest; `rate` is in requests a second (0: no limit)."""

    digest: str
    project: str
    role: str
    name: str = ""
    rate: float = 0.0
    burst: int = 0


def check_name(what: str, name: str) -> str:
    """The name itself when it is a safe one; raises `InvalidInput` otherwise."""
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"{what} {name[:80]!r} is not a valid name: use 1 to 64 letters, digits, '.', '_' or "
            "'-', "
            "beginning and ending with a letter or digit"
        )
    return name


class Reference(Struct, frozen=True, kw_only=True):
    """A model as people name it: `name`, `name:3` or `name@alias`."""

    name: str
    version: int | None = None
    alias: str | None = None


def parse_reference(text: str) -> Reference:
    """Read `NAME[:VERSION|@ALIAS]`; raises `InvalidInput`."""
    name, mark, rest = (
        text.partition("@") if "@" in text else text.partition(":")
    )
    if mark and not rest:
        raise InvalidInput(
            f"'{text}' lacks what follows '{mark}': write NAME, NAME:VERSION or NAME@ALIAS"
        )
    check_name("model", name)
    if mark == ":":
        return Reference(name=name, version=_version_in(rest, name))
    return Reference(
        name=name, alias=check_name("alias", rest) if rest else None
    )


def _version_in(text: str, name: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise InvalidInput(
            f"'{text}' is not a version: versions are numbers from 1, as in '{name}:1'"
        )
    return int(text)


Positive = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
