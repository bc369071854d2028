"""The Python SDK: the same verbs as the command line, over the REST API.

from modelmill import Client

mill = Client()                                  # the platform of this machine's home
mill.add_data("waste", "photos.zip", task="image-classification")
job = mill.train("waste", task="image-classification", data="waste", recipe="resnet", wait=True)
mill.deploy("waste", wait=True)
mill.predict("waste", "bottle.jpg")              # [{"input": "bottle.jpg", "output": [{"label": ...}]}]
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, cast

import httpx2
import msgspec

from modelmill.errors import (
    BY_CODE,
    InvalidInput,
    MillError,
    NotFound,
    Unauthenticated,
    Unavailable,
    from_code,
)

POLL_SECONDS = 0.2
KNOWN_SECONDS = 5.0
ENDED = ("succeeded", "failed", "cancelled", "interrupted")
CODES = {
    400: "invalid_input",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    413: "too_large",
    429: "overloaded",
    503: "unavailable",
    504: "timeout",
    507: "storage_full",
}

ITEMS, ITEMS_BYTES = 64, 16 << 20
"""Most items, and bytes of them, in one request to an index."""

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
    created: str


class Deployment(TypedDict):
    """A served model; `state` is loading, ready, asleep, unloaded or failed, `serving` the version that answers now."""

    task: str
    note: str
    options: Json
    variants: list[Json]
    memory: int

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
    """An access key; `rate` in requests a second (0: no limit). The key itself is shown by `add_key` alone."""

    name: str
    role: str
    rate: float
    burst: int
    created: str


class NewKey(Key):
    """A key that was just made, with the `key` itself."""

    key: str


class Index(TypedDict):
    """An index of what a version of a model makes of pictures; `labels` counts the items of each label."""

    name: str
    model: str
    version: int
    dimensions: int
    items: int
    labels: dict[str, int]
    created: str


class Hit(TypedDict):
    """An item of an index that was found; `score` is the cosine similarity, 1 for the same direction."""

    id: int
    label: str
    score: float
    metadata: Json


class Prediction(TypedDict):
    """An input and the model's answer to it."""

    input: str
    output: Any


def home_of(home: str | os.PathLike[str] | None = None) -> Path:
    """The given home, `MODELMILL_HOME`, or `~/.modelmill`."""
    return Path(home or os.environ.get("MODELMILL_HOME") or Path.home() / ".modelmill").expanduser().absolute()


class Client:
    """Speaks to one platform. Every method raises `MillError`, whose text says what was wrong."""

    def __init__(
        self, url: str | None = None, key: str | None = None, home: str | os.PathLike[str] | None = None
    ) -> None:
        """Default: `MODELMILL_URL` and `MODELMILL_KEY`, else those that the local home's platform left there."""
        folder = home_of(home)
        self.url = (url or os.environ.get("MODELMILL_URL") or _first_line(folder / "address")).rstrip("/")
        local = self.url == _first_line(folder / "address")  # the home's key is for the home's platform alone
        self.key = key or os.environ.get("MODELMILL_KEY") or (_first_line(folder / "admin.key") if local else "")
        if self.url and "://" not in self.url:
            raise InvalidInput(f"'{self.url}' is not a URL: write http://{self.url}")
        if not self.url:
            raise Unavailable(f"no platform was started in {folder}: run `modelmill up`, or set MODELMILL_URL")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=httpx2.Timeout(120, connect=5))

    def __enter__(self) -> "Client":
        """Use as a context manager to close the connections."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ---- data

    def add_data(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        task: str,
        format: str = "",
        options: Mapping[str, str] | None = None,
        strict: bool = False,
        on_event: OnEvent | None = None,
    ) -> Dataset:
        """Upload a folder, file or zip, wait for its check, and return what was found."""
        parameters: Json = {"name": name, "task": task, "format": format, "strict": strict}
        parameters["option"] = [f"{key}={value}" for key, value in (options or {}).items()]
        added = self._upload("/api/v1/datasets", Path(path).expanduser(), parameters)
        if added["job"] is not None:
            _raise_unless_done(self.wait(added["job"], on_event))
        return self.dataset(name)

    def datasets(self) -> list[Dataset]:
        """All data sets."""
        return cast(list[Dataset], self._get("/api/v1/datasets"))

    def dataset(self, name: str) -> Dataset:
        """One data set."""
        return cast(Dataset, self._get(f"/api/v1/datasets/{_quoted(name)}"))

    def remove_data(self, name: str) -> None:
        """Forget a data set."""
        self._call("DELETE", f"/api/v1/datasets/{_quoted(name)}")

    # ---- jobs

    def train(
        self,
        name: str,
        *,
        task: str,
        data: str,
        recipe: str = "",
        settings: Mapping[str, Any] | None = None,
        wait: bool = False,
        on_event: OnEvent | None = None,
    ) -> Job:
        """Train a version of the model `name`; with `wait`, return when it has ended, failing if it failed."""
        body = {"name": name, "task": task, "data": data, "recipe": recipe, "settings": dict(settings or {})}
        return self._submit("/api/v1/train", body, wait, on_event)

    def evaluate(
        self,
        model: str,
        *,
        data: str,
        split: str = "test",
        wait: bool = False,
        on_event: OnEvent | None = None,
    ) -> Job:
        """Measure `NAME[:VERSION|@ALIAS]` on a data set; the job's `metrics` hold the result."""
        return self._submit("/api/v1/evaluate", {"model": model, "data": data, "split": split}, wait, on_event)

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        return cast(list[Job], self._get("/api/v1/jobs"))

    def job(self, number: int) -> Job:
        """One job."""
        return cast(Job, self._get(f"/api/v1/jobs/{number}"))

    def cancel(self, number: int) -> Job:
        """Stop a job now."""
        return cast(Job, self._call("POST", f"/api/v1/jobs/{number}/cancel"))

    def resume(self, number: int) -> Job:
        """Let a stopped job go on from its last checkpoint."""
        return cast(Job, self._call("POST", f"/api/v1/jobs/{number}/resume"))

    def wait(self, number: int, on_event: OnEvent | None = None) -> Job:
        """Wait until a job has ended; `on_event` gets its events (stage, progress, step, epoch) as they come."""
        for text in self._follow(number, "events", follow=True):
            for event in _events(text):
                if on_event is not None:
                    on_event(event)
        return self.job(number)

    def logs(self, number: int, *, follow: bool = False) -> Iterator[str]:
        """What a job has printed, in pieces; with `follow`, until it has ended."""
        return self._follow(number, "log", follow=follow)

    # ---- models

    def import_model(
        self, name: str, path: str | os.PathLike[str], *, labels: Sequence[str] = (), on_event: OnEvent | None = None
    ) -> Version:
        """Bring a finished model, a `.onnx` file or a bundle (folder or zip), and wait until it was checked.

        A bare `.onnx` file has no task: it takes and gives tensors; `labels` names the classes of its output.
        """
        place = Path(path).expanduser()
        parameters: Json = {"name": name, "label": list(labels)}
        if place.is_file():  # what it holds is seen where it arrives
            content = _read_file(place)
            headers = {"Content-Type": "application/octet-stream"}
            job = self._call("POST", "/api/v1/models", params=parameters, content=content, headers=headers)
        else:
            job = self._upload("/api/v1/models", place, parameters)
        done = _raise_unless_done(self.wait(job["job"], on_event))
        return self.model(f"{name}:{done['version']}")

    def models(self) -> list[Version]:
        """All versions of all models."""
        return cast(list[Version], self._get("/api/v1/models"))

    def model(self, reference: str) -> Version:
        """One version: NAME (the newest), NAME:VERSION or NAME@ALIAS."""
        return cast(Version, self._get(f"/api/v1/models/{_quoted(reference)}"))

    def alias(self, reference: str, alias: str) -> Version:
        """Point an alias such as `champion` at a version."""
        return cast(Version, self._call("PUT", "/api/v1/aliases", json={"model": reference, "alias": alias}))

    # ---- deployments

    def deploy(
        self, model: str, *, name: str = "", replicas: int | None = None, wait: bool = False, **options: Any
    ) -> Deployment:
        """Serve `NAME[:VERSION|@ALIAS]`; over a running version without a failed request.

        Options: `min_replicas`, `max_replicas`, `idle_seconds`, `target_delay_ms`, `threads`, `engine`, `precision`,
        `max_wait_ms`; with `canary` (percent of the requests) or `shadow=True` the version is served beside the main
        one, a canary until it breaks `max_error_rate` or `max_slowdown`.
        """
        body = {"model": model, "name": name, "replicas": replicas, **options}
        row = cast(Deployment, self._call("POST", "/api/v1/deployments", json=body))
        while wait and not (row["state"] == "failed" or self._answers(row)):
            time.sleep(POLL_SECONDS / 4)
            row = self.deployment(row["name"])
        if wait and row["state"] == "failed":
            raise MillError(f"'{row['name']}' can't be served: {row['error']}")
        return row

    def deployments(self) -> list[Deployment]:
        """All deployments."""
        return cast(list[Deployment], self._get("/api/v1/deployments"))

    def deployment(self, name: str) -> Deployment:
        """One deployment."""
        return cast(Deployment, self._get(f"/api/v1/deployments/{_quoted(name)}"))

    def promote(self, name: str, version: int | None = None) -> Deployment:
        """Make the canary (or shadow) of a deployment its main version."""
        return self._operate(name, "promote", version)

    def rollback(self, name: str, version: int | None = None) -> Deployment:
        """Take the canaries and shadows of a deployment away."""
        return self._operate(name, "rollback", version)

    def load(self, name: str) -> Deployment:
        """Start the workers of an unloaded deployment."""
        return self._operate(name, "load")

    def unload(self, name: str) -> Deployment:
        """End the workers of a deployment; it keeps its name."""
        return self._operate(name, "unload")

    def _operate(self, name: str, verb: str, version: int | None = None) -> Deployment:
        parameters = {} if version is None else {"version": version}
        path = f"/api/v1/deployments/{_quoted(name)}/{verb}"
        return cast(Deployment, self._call("POST", path, params=parameters))

    def undeploy(self, name: str) -> None:
        """Stop serving."""
        self._call("DELETE", f"/api/v1/deployments/{_quoted(name)}")

    def predict(
        self,
        deployment: str,
        *inputs: str | bytes | os.PathLike[str],
        parameters: Mapping[str, Any] | None = None,
    ) -> list[Prediction]:
        """Answers for files or texts, in their order; `parameters` such as `{"top_k": 3}` go to the task.

        A model that makes pictures takes seeds, or nothing, and answers a list of PNG files in base64 for each.
        """
        kind = self._get(f"/models/{_quoted(deployment)}")["input"]
        if kind == "seed" and not inputs:
            inputs = ("",)
        return [
            {"input": one.hex()[:16] if isinstance(one, bytes) else str(one), "output": output}
            for one in inputs
            for output in [self._predict_named(deployment, kind, one, dict(parameters or {}), len(inputs) > 1)]
        ]

    # ---- indexes

    def create_index(self, name: str, model: str) -> Index:
        """An empty index of the vectors of `NAME[:VERSION|@ALIAS]`, such as a model of image-feature-extraction."""
        return cast(Index, self._call("POST", "/api/v1/indexes", json={"name": name, "model": model}))

    def indexes(self) -> list[Index]:
        """All indexes."""
        return cast(list[Index], self._get("/api/v1/indexes"))

    def index(self, name: str) -> Index:
        """One index."""
        return cast(Index, self._get(f"/api/v1/indexes/{_quoted(name)}"))

    def add_to_index(
        self,
        name: str,
        *inputs: str | bytes | os.PathLike[str],
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Add files (their bytes, or all files of folders); returns the numbers of the items.

        Without a `label` a file of a folder has the label that its place in the folder says, as in `LABEL/1.jpg`.
        Some dozens go at once: when one is refused, those that went before stay.
        """
        from base64 import b64encode

        ids: list[int] = []
        items: list[Json] = []
        names: list[str] = []
        size = 0
        for title, data, said in _enrolled(inputs):
            if items and (len(items) == ITEMS or size + len(data) > ITEMS_BYTES):
                ids += self._add_items(name, items, names)
                items, names, size = [], [], 0
            given = said if label is None else label
            items.append({"input": b64encode(data).decode(), "label": given, "metadata": dict(metadata or {})})
            names.append(title)
            size += len(data)
        return ids + self._add_items(name, items, names) if items else ids

    def search_index(self, name: str, query: str | bytes | os.PathLike[str], k: int = 5) -> list[Hit]:
        """The `k` items most like a picture (a file or its bytes), the nearest first."""
        data = query if isinstance(query, bytes) else _read_file(Path(query))
        headers = {"Content-Type": "application/octet-stream"}
        path = f"/api/v1/indexes/{_quoted(name)}/search"
        return cast(list[Hit], self._call("POST", path, params={"k": k}, content=data, headers=headers))

    def index_items(self, name: str, *, label: str | None = None, offset: int = 0, limit: int = 100) -> list[Json]:
        """Items in the order in which they came: `id`, `label` and `metadata`."""
        parameters: Json = {"offset": offset, "limit": limit, **({} if label is None else {"label": label})}
        return cast(list[Json], self._get(f"/api/v1/indexes/{_quoted(name)}/items", params=parameters))

    def remove_from_index(self, name: str, id: int | None = None, *, label: str | None = None) -> int:
        """Remove the item of a number, or all of a label; returns how many."""
        if (id is None) == (label is None):
            raise InvalidInput("say which items to remove: the number of one, or a label")
        path = f"/api/v1/indexes/{_quoted(name)}/items" + (f"/{id}" if label is None else "")
        parameters = {} if label is None else {"label": label}
        return int(self._call("DELETE", path, params=parameters)["removed"])

    def deploy_index(self, name: str, deployment: str, *, k: int = 5, wait: bool = False) -> Deployment:
        """Serve a classifier by the `k` nearest neighbours among the items that the index has now.

        It is the next version of the model `deployment`; deploy again when the index has changed.
        """
        body = {"name": deployment, "k": k}
        path = f"/api/v1/indexes/{_quoted(name)}/classifier"
        done = _raise_unless_done(self.wait(self._call("POST", path, json=body)["job"]))
        return self.deploy(f"{deployment}:{done['version']}", wait=wait)

    def delete_index(self, name: str) -> None:
        """Forget an index with all its items."""
        self._call("DELETE", f"/api/v1/indexes/{_quoted(name)}")

    # ---- keys

    def add_key(self, name: str, role: str = "user", rate: float = 0, burst: int = 0) -> NewKey:
        """Make an access key; its `key` can't be shown again.

        `role` is user (predict and look) or admin; `rate` is in requests a second (0: no limit), `burst` how many may
        come at once (0: one second's worth).
        """
        body = {"name": name, "role": role, "rate": rate, "burst": burst}
        made = cast(NewKey, self._call("POST", "/api/v1/keys", json=body))
        self._until_known(made["key"])
        return made

    def keys(self) -> list[Key]:
        """All access keys, without the keys themselves."""
        return cast(list[Key], self._get("/api/v1/keys"))

    def remove_key(self, name: str) -> None:
        """Withdraw an access key."""
        self._call("DELETE", f"/api/v1/keys/{_quoted(name)}")

    # ---- catalogue

    def tasks(self) -> list[Json]:
        """What can be trained and served."""
        return cast(list[Json], self._get("/api/v1/tasks"))

    def recipes(self, task: str) -> list[Json]:
        """The recipes of a task with the defaults of their settings."""
        return cast(list[Json], self._get("/api/v1/recipes", params={"task": task}))

    # ---- how

    def _answers(self, row: Deployment) -> bool:
        """Whether the gateway already routes to the wanted version."""
        beside = [one for one in row["variants"] if not one["ready_replicas"]]
        path = f"/v2/models/{_quoted(row['name'])}/versions/{row['version']}/ready"
        return row["state"] == "ready" and not beside and self._http.get(path).is_success

    def _until_known(self, key: str) -> None:
        """Wait until the gateway has heard of a new key, which takes a moment."""
        end = time.monotonic() + KNOWN_SECONDS
        headers = {"Authorization": f"Bearer {key}"}
        while time.monotonic() < end and self._http.get("/v1/models", headers=headers).status_code == 401:
            time.sleep(POLL_SECONDS / 10)

    def _predict_named(
        self, deployment: str, kind: str, one: str | bytes | os.PathLike[str], parameters: Json, many: bool
    ) -> Any:
        """One answer; among many inputs an error names the one it is about."""
        try:
            return self._predict(deployment, kind, one, parameters)
        except (InvalidInput, NotFound) as error:
            if not many or isinstance(one, bytes):
                raise
            raise type(error)(f"{os.fspath(one)[:200]}: {error}") from error

    def _predict(self, deployment: str, kind: str, one: str | bytes | os.PathLike[str], parameters: Json) -> Any:
        path = f"/models/{_quoted(deployment)}"
        if kind == "seed":
            text = one.decode() if isinstance(one, bytes) else str(one)
            return self._call("POST", path, json={"inputs": text, "parameters": parameters})
        if kind == "text":
            text = one.decode() if isinstance(one, bytes) else _text_of(one)
            return self._call("POST", path, json={"inputs": text, "parameters": parameters})[0]
        data = one if isinstance(one, bytes) else _read_file(Path(one))
        headers = {"Accept": "application/json"}
        if not parameters:
            headers["Content-Type"] = "application/octet-stream"
            return self._call("POST", path, content=data, headers=headers)
        from base64 import b64encode

        body = {"inputs": b64encode(data).decode(), "parameters": parameters}
        return self._call("POST", path, json=body, headers=headers)

    def _add_items(self, name: str, items: list[Json], names: list[str]) -> list[int]:
        """Add some items to an index; an error about one of them names its file."""
        try:
            return list(self._call("POST", f"/api/v1/indexes/{_quoted(name)}/items", json={"items": items})["ids"])
        except InvalidInput as error:
            place, colon, why = error.message.partition(": ")
            number = place.removeprefix("item ") if len(items) > 1 else "0"
            if not number.isdecimal() or not names[int(number)]:
                raise
            raise type(error)(f"{names[int(number)][:200]}: {why if colon and len(items) > 1 else error}") from error

    def _submit(self, path: str, body: Json, wait: bool, on_event: OnEvent | None) -> Job:
        job = cast(Job, self._call("POST", path, json=body))
        return _raise_unless_done(self.wait(job["job"], on_event)) if wait else job

    def _follow(self, number: int, what: str, *, follow: bool) -> Iterator[str]:
        offset = 0
        while True:
            chunk = self._get(f"/api/v1/jobs/{number}/{what}", params={"offset": offset})
            moved, offset = chunk["offset"] != offset, chunk["offset"]
            if chunk["text"]:
                yield chunk["text"]
            if not moved and (not follow or chunk["state"] in ENDED):
                return
            if not moved:
                time.sleep(POLL_SECONDS)

    def _upload(self, path: str, data: Path, parameters: Json) -> Json:
        from modelmill.data.pack import pack

        with tempfile.TemporaryFile() as file:
            pack(data, cast(Any, file))
            size = file.tell()
            file.seek(0)
            headers = {"Content-Type": "application/zip", "Content-Length": str(size)}
            chunks = iter(lambda: file.read(1 << 20), b"")
            return cast(Json, self._call("POST", path, params=parameters, content=chunks, headers=headers))

    def _get(self, path: str, **options: Any) -> Any:
        return self._call("GET", path, **options)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.TimeoutException as error:
            raise Unavailable(f"{self.url} did not answer in time") from error
        except httpx2.TransportError as error:
            message = f"no platform answers at {self.url} ({error}): is it running? (`modelmill up`)"
            raise Unavailable(message) from error
        if response.is_success:
            return msgspec.json.decode(response.content) if response.content else None
        raise self._failure(response)

    def _failure(self, response: "httpx2.Response") -> MillError:
        try:
            document = msgspec.json.decode(response.content)
            message, code = str(document["error"]), document.get("code", "")
        except (msgspec.DecodeError, KeyError, TypeError):
            message, code = f"HTTP {response.status_code} from {response.url}", ""
        failure = from_code(code if code in BY_CODE else CODES.get(response.status_code, "internal"), message)
        if isinstance(failure, Unauthenticated) and not self.key:
            failure = Unauthenticated(f"{self.url} needs a key: set MODELMILL_KEY, or MODELMILL_HOME to its home")
        return failure


def _events(text: str) -> Iterator[Json]:
    """The events of some lines; a line that a killed job left unfinished is none."""
    for line in text.splitlines():
        with suppress(msgspec.DecodeError):
            yield msgspec.json.decode(line)


def _raise_unless_done(job: Job) -> Job:
    if job["state"] != "succeeded":
        why = f": {job['error']}" if job["error"] else ""
        raise MillError(f"job {job['job']} {job['state']}{why}")
    return job


def _quoted(name: str) -> str:
    from urllib.parse import quote

    if not name or "/" in name:
        raise InvalidInput(f"'{name}' is not a name")
    return quote(name, safe=":@")


def _first_line(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""


def _text_of(one: str | os.PathLike[str]) -> str:
    """The content of the file of this name, or the text itself."""
    try:
        return Path(one).read_text("utf-8") if Path(one).is_file() else str(one)
    except (OSError, ValueError):  # too long, or otherwise no name that a file can have
        return str(one)


def _enrolled(inputs: Sequence[str | bytes | os.PathLike[str]]) -> Iterator[tuple[str, bytes, str]]:
    """What is to be added to an index: the file's name, its bytes, and the label that a folder gives it."""
    for one in inputs:
        if isinstance(one, bytes):
            yield "", one, ""
        elif not (place := Path(one).expanduser()).is_dir():
            yield str(one), _read_file(place), ""
        else:
            files = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
            if not files:
                raise InvalidInput(f"the folder '{place}' holds no files")
            for path in files:
                label = path.relative_to(place).parent.as_posix()
                yield str(path), _read_file(path), "" if label == "." else label


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"there is no file '{path}'") from error
    except OSError as error:
        raise InvalidInput(f"'{path}' can't be read: {error.strerror}") from error
