"""The calls of the SDK, in the order of a model's life."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from modelmill.client._connection import (
    KEY_SECONDS,
    POLL_SECONDS,
    quoted,
    raise_unless_done,
    read_file,
    text_of,
)
from modelmill.client._indexes import Indexes
from modelmill.client._texts import Texts
from modelmill.client.rows import (
    Dataset,
    Deployment,
    Job,
    Json,
    Key,
    NewKey,
    OnEvent,
    Prediction,
    Version,
)
from modelmill.errors import (
    InvalidInput,
    MillError,
    NotFound,
)
from modelmill.tasks.kinds import input_kind
from modelmill.tasks.kinds.base import InputKind


class Client(Indexes, Texts):
    """Speaks to one platform. Every method raises `MillError`, whose text says what was wrong."""

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
        """Upload a folder, file or zip, wait for its check, and return the data set with its
        findings.
        """
        parameters: Json = {
            "name": name,
            "task": task,
            "format": format,
            "strict": strict,
        }
        parameters["option"] = [
            f"{key}={value}" for key, value in (options or {}).items()
        ]
        added = self._upload(
            "/api/v1/datasets", Path(path).expanduser(), parameters
        )
        if added["job"] is not None:
            raise_unless_done(self.wait(added["job"], on_event))
        return self.dataset(name)

    def datasets(self) -> list[Dataset]:
        """All data sets."""
        return cast(list[Dataset], self._get("/api/v1/datasets"))

    def dataset(self, name: str) -> Dataset:
        """One data set."""
        return cast(Dataset, self._get(f"/api/v1/datasets/{quoted(name)}"))

    def remove_data(self, name: str) -> None:
        """Remove a data set."""
        self._call("DELETE", f"/api/v1/datasets/{quoted(name)}")

    # ---- jobs

    def train(
        self,
        name: str,
        *,
        task: str,
        data: str,
        recipe: str = "",
        settings: Mapping[str, Any] | None = None,
        base: str = "",
        wait: bool = False,
        on_event: OnEvent | None = None,
    ) -> Job:
        """Train a version of the model `name`, from the version `base` where one is named.

        With `wait`, return when it has ended, failing if it failed.
        """
        body = {
            "name": name,
            "task": task,
            "data": data,
            "recipe": recipe,
            "settings": dict(settings or {}),
        }
        if base:
            body["from"] = base
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
        """Evaluate `NAME[:VERSION|@ALIAS]` on a data set; the job's `metrics` hold the result."""
        return self._submit(
            "/api/v1/evaluate",
            {"model": model, "data": data, "split": split},
            wait,
            on_event,
        )

    def submit(
        self,
        kind: str,
        request: Mapping[str, Any],
        *,
        file: str | os.PathLike[str] | None = None,
        wait: bool = False,
        on_event: OnEvent | None = None,
    ) -> Job:
        """Queue a job of any kind that `kinds` names, with the fields that it asks for.

        Some kinds want a `file` besides; a folder is packed. With `wait`, return when it has ended,
        failing if it failed.
        """
        path = f"/api/v1/jobs/{quoted(kind)}"
        if file is None:
            return self._submit(path, dict(request), wait, on_event)
        parameters: Json = {"request": msgspec.json.encode(request).decode()}
        job = self._send_file(path, Path(file).expanduser(), parameters)
        return self._ended(cast(Job, job), wait, on_event)

    def kinds(self) -> list[Json]:
        """The kinds of jobs, each with its request as a JSON schema."""
        return cast(list[Json], self._get("/api/v1/kinds"))

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
        """Continue a stopped job from its last checkpoint."""
        return cast(Job, self._call("POST", f"/api/v1/jobs/{number}/resume"))

    def logs(self, number: int, *, follow: bool = False) -> Iterator[str]:
        """What a job has printed, in pieces; with `follow`, until it has ended."""
        return self._follow(number, "log", follow=follow)

    # ---- models

    def import_model(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        labels: Sequence[str] = (),
        trust: bool = False,
        on_event: OnEvent | None = None,
    ) -> Version:
        """Import a model, a `.onnx` or `.pt2` file or a bundle (folder or zip), and wait until it
        was checked.

        A bare file has no task: it takes and returns tensors; `labels` names the classes of its
        output. A `.pt2` file may run code when it is opened: it is taken only with `trust`.
        """
        parameters: Json = {"name": name, "label": list(labels)}
        if trust:
            parameters["trust"] = True
        job = self._send_file(
            "/api/v1/models", Path(path).expanduser(), parameters
        )
        done = raise_unless_done(self.wait(job["job"], on_event))
        return self.model(f"{name}:{done['version']}")

    def models(self) -> list[Version]:
        """All versions of all models."""
        return cast(list[Version], self._get("/api/v1/models"))

    def model(self, reference: str) -> Version:
        """One version: NAME (the newest), NAME:VERSION or NAME@ALIAS."""
        return cast(Version, self._get(f"/api/v1/models/{quoted(reference)}"))

    def alias(self, reference: str, alias: str) -> Version:
        """Point an alias such as `champion` at a version."""
        return cast(
            Version,
            self._call(
                "PUT",
                "/api/v1/aliases",
                json={"model": reference, "alias": alias},
            ),
        )

    # ---- deployments

    def deploy(
        self,
        model: str,
        *,
        name: str = "",
        replicas: int | None = None,
        wait: bool = False,
        **options: Any,
    ) -> Deployment:
        """Serve `NAME[:VERSION|@ALIAS]`; over a running version without a failed request.

        Options: `min_replicas`, `max_replicas`, `idle_seconds`, `target_delay_ms`, `threads`,
        `engine`, `precision`, `max_wait_ms`, `batch`; with `canary` (percent of the requests) or
        `shadow=True` the version is served beside the main one, a canary until it breaks
        `max_error_rate` or `max_slowdown`.
        """
        body = {"model": model, "name": name, "replicas": replicas, **options}
        row = cast(
            Deployment, self._call("POST", "/api/v1/deployments", json=body)
        )
        return self._wait_until_routed(row) if wait else row

    def _wait_until_routed(self, row: Deployment) -> Deployment:
        """Wait until a deployment answers; raises `MillError` where it failed."""
        while row["state"] != "failed" and not self._is_routed(row):
            time.sleep(POLL_SECONDS / 4)
            row = self.deployment(row["name"])
        if row["state"] == "failed":
            raise MillError(f"'{row['name']}' can't be served: {row['error']}")
        return row

    def deployments(self) -> list[Deployment]:
        """All deployments."""
        return cast(list[Deployment], self._get("/api/v1/deployments"))

    def deployment(self, name: str) -> Deployment:
        """One deployment."""
        return cast(
            Deployment, self._get(f"/api/v1/deployments/{quoted(name)}")
        )

    def promote(self, name: str, version: int | None = None) -> Deployment:
        """Make the canary (or shadow) of a deployment its main version."""
        return self._operate(name, "promote", version)

    def rollback(self, name: str, version: int | None = None) -> Deployment:
        """Remove the canaries and shadows of a deployment."""
        return self._operate(name, "rollback", version)

    def load(self, name: str) -> Deployment:
        """Start the workers of an unloaded deployment."""
        return self._operate(name, "load")

    def unload(self, name: str) -> Deployment:
        """End the workers of a deployment; it keeps its name."""
        return self._operate(name, "unload")

    def _operate(
        self, name: str, verb: str, version: int | None = None
    ) -> Deployment:
        parameters = {} if version is None else {"version": version}
        path = f"/api/v1/deployments/{quoted(name)}/{verb}"
        return cast(Deployment, self._call("POST", path, params=parameters))

    def undeploy(self, name: str) -> None:
        """Stop serving."""
        self._call("DELETE", f"/api/v1/deployments/{quoted(name)}")

    def deploy_index(
        self, name: str, deployment: str, *, k: int = 5, wait: bool = False
    ) -> Deployment:
        """Serve a classifier by the `k` nearest neighbours among the items that the index has now.

        It is the next version of the model `deployment`; deploy again when the index has changed.
        """
        body = {"name": deployment, "k": k}
        path = f"/api/v1/indexes/{quoted(name)}/classifier"
        done = raise_unless_done(
            self.wait(self._call("POST", path, json=body)["job"])
        )
        return self.deploy(f"{deployment}:{done['version']}", wait=wait)

    def served(self, deployment: str) -> Json:
        """What a deployment is to its callers: its task, its labels, and the kinds of what it takes
        (`input` and `also`) and answers (`output`).
        """
        return cast(Json, self._get(f"/models/{quoted(deployment)}"))

    def predict(
        self,
        deployment: str,
        *inputs: str | bytes | os.PathLike[str],
        parameters: Mapping[str, Any] | None = None,
    ) -> list[Prediction]:
        """Answers for files or texts, in their order; `parameters` such as `{"top_k": 3}` go to the
        task.

        Question answering takes JSON of a question and a context. A model that generates pictures
        takes seeds, or no inputs, and returns a list of PNG files in base64 for each.
        """
        path = f"/models/{quoted(deployment)}"
        kind = input_kind(self.served(deployment)["input"])
        given = dict(parameters or {})
        if kind.optional and not inputs:
            inputs = ("",)
        if len(inputs) == 1:
            return [self._prediction(path, kind, inputs[0], given)]
        return [
            self._named_prediction(path, kind, value, given) for value in inputs
        ]

    # ---- keys

    def add_key(
        self, name: str, role: str = "user", rate: float = 0, burst: int = 0
    ) -> NewKey:
        """Make an access key; its `key` can't be shown again.

        `role` is user (predict and look) or admin; `rate` is in requests a second (0: no limit),
        `burst` how many may come at once (0: one second's worth).
        """
        body = {"name": name, "role": role, "rate": rate, "burst": burst}
        added = cast(NewKey, self._call("POST", "/api/v1/keys", json=body))
        self._wait_for_key(added["key"])
        return added

    def keys(self) -> list[Key]:
        """All access keys, without the keys themselves."""
        return cast(list[Key], self._get("/api/v1/keys"))

    def remove_key(self, name: str) -> None:
        """Revoke an access key."""
        self._call("DELETE", f"/api/v1/keys/{quoted(name)}")

    # ---- catalogue

    def tasks(self) -> list[Json]:
        """What can be trained and served."""
        return cast(list[Json], self._get("/api/v1/tasks"))

    def recipes(self, task: str) -> list[Json]:
        """The recipes of a task with the defaults of their settings."""
        return cast(
            list[Json], self._get("/api/v1/recipes", params={"task": task})
        )

    # ---- private

    def _is_routed(self, row: Deployment) -> bool:
        """Whether the gateway routes to the version of a deployment, and to its canaries and
        shadows.
        """
        if row["state"] != "ready":
            return False
        if not all(variant["ready_replicas"] for variant in row["variants"]):
            return False
        path = (
            f"/v2/models/{quoted(row['name'])}/versions/{row['version']}/ready"
        )
        return self._http.get(path).is_success

    def _wait_for_key(self, key: str) -> None:
        """Wait until the gateway accepts a new key, for up to `KEY_SECONDS`."""
        end = time.monotonic() + KEY_SECONDS
        headers = {"Authorization": f"Bearer {key}"}
        while (
            time.monotonic() < end
            and self._http.get("/v1/models", headers=headers).status_code == 401
        ):
            time.sleep(POLL_SECONDS / 10)

    def _named_prediction(
        self,
        path: str,
        kind: InputKind,
        value: str | bytes | os.PathLike[str],
        parameters: Json,
    ) -> Prediction:
        """As `_prediction`; an error names the file or text that it is about."""
        try:
            return self._prediction(path, kind, value, parameters)
        except (InvalidInput, NotFound) as error:
            if isinstance(value, bytes):
                raise
            raise type(error)(f"{os.fspath(value)[:200]}: {error}") from error

    def _prediction(
        self,
        path: str,
        kind: InputKind,
        value: str | bytes | os.PathLike[str],
        parameters: Json,
    ) -> Prediction:
        name = value.hex()[:16] if isinstance(value, bytes) else str(value)
        output = self._predict(path, kind, value, parameters)
        return {"input": name, "output": output}

    def _predict(
        self,
        path: str,
        kind: InputKind,
        value: str | bytes | os.PathLike[str],
        parameters: Json,
    ) -> Any:
        if kind.sent_as == "number":
            text = value.decode() if isinstance(value, bytes) else str(value)
            return self._predict_json(path, text, parameters)
        if kind.is_text:
            text = (
                value.decode() if isinstance(value, bytes) else text_of(value)
            )
            # A list with one text is answered by a list with one answer, whatever the task.
            return self._predict_json(path, [text], parameters)[0]
        data = value if isinstance(value, bytes) else read_file(Path(value))
        return self._predict_bytes(path, data, parameters)

    def _predict_json(self, path: str, inputs: Any, parameters: Json) -> Any:
        body = {"inputs": inputs, "parameters": parameters}
        return self._call("POST", path, json=body)

    def _predict_bytes(self, path: str, data: bytes, parameters: Json) -> Any:
        headers = {"Accept": "application/json"}
        if not parameters:
            headers["Content-Type"] = "application/octet-stream"
            return self._call("POST", path, content=data, headers=headers)
        from base64 import b64encode

        body = {"inputs": b64encode(data).decode(), "parameters": parameters}
        return self._call("POST", path, json=body, headers=headers)
