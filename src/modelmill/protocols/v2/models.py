"""What v2 tells of the server and its models, as dictionaries in the names of Triton's JSON."""

from collections.abc import Iterator

import msgspec

from modelmill import __version__
from modelmill.errors import Unavailable
from modelmill.serve.gateway import Gateway
from modelmill.serve.meter import Series
from modelmill.tasks.kinds import TENSOR
from modelmill.types import Json, KeyInfo, ServedVersion, TensorSpec

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "parameters",
    "schedule_policy",
    "statistics",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "trace",
    "logging",
)
PLATFORMS = {
    "onnx": ("onnxruntime_onnx", "onnxruntime"),
    "torch": ("pytorch_libtorch", "pytorch"),
}
"""Triton's names of platform and backend; another engine goes by its own name."""


def server_metadata(gateway: Gateway) -> Json:
    """Name, version and extensions."""
    memory = ["system_shared_memory"] if gateway.shared_memory else []
    return {
        "name": "modelmill",
        "version": __version__,
        "extensions": [*EXTENSIONS, *memory],
    }


def is_ready(gateway: Gateway, route: ServedVersion) -> bool:
    """Whether a request would be answered; a model that is asleep wakes for it."""
    return (
        route.ready
        and route.loaded
        and (route.asleep or gateway.connected(route))
    )


def model_metadata(
    gateway: Gateway, caller: KeyInfo, name: str, version: str | None = None
) -> Json:
    """Versions, platform and signature; `task` tells the raw input and the answer of a task's
    model.
    """
    route = _known(gateway, caller, name, version)
    document: Json = {
        "name": route.deployment,
        "versions": [
            str(one.version) for one in versions(gateway.route(caller, name))
        ],
        "platform": PLATFORMS.get(route.engine, (route.engine,))[0],
        "inputs": msgspec.to_builtins(route.inputs),
        "outputs": msgspec.to_builtins(route.outputs),
    }
    if route.task and route.kind != TENSOR:
        document["task"] = _task(route)
    return document


def _task(route: ServedVersion) -> Json:
    """The raw input and the answer of a task's model."""
    return {
        "name": route.task,
        "inputs": [{"name": route.kind, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "answer", "datatype": "BYTES", "shape": [-1]}],
    }


def versions(route: ServedVersion) -> list[ServedVersion]:
    """The versions of a deployment that answer callers, lowest first."""
    return sorted(
        [route, *(one for one in route.others if not one.shadow)],
        key=lambda one: one.version,
    )


def _known(
    gateway: Gateway, caller: KeyInfo, name: str, version: str | None
) -> ServedVersion:
    """A route whose signature is known; raises `NotFound`, `Unavailable`."""
    route = gateway.route(caller, name, version)
    if not route.inputs:
        gateway.refuse_unservable(route)
        raise Unavailable(f"'{name}' is loading", retry_after=1)
    return route


def model_config(
    gateway: Gateway, caller: KeyInfo, name: str, version: str | None = None
) -> Json:
    """The configuration as Triton would have it; `dims` lack the batch axis when `max_batch_size`
    is not 0.
    """
    route = _known(gateway, caller, name, version)
    numbers = [one.version for one in versions(gateway.route(caller, name))]
    platform, backend = PLATFORMS.get(
        route.engine, (route.engine, route.engine)
    )
    return {
        "name": route.deployment,
        "platform": platform,
        "backend": backend,
        "version_policy": {"specific": {"versions": numbers}},
        **_tensor_configs(route, gateway.limits.batch),
        **_scheduling(route),
        "parameters": _model_parameters(route),
    }


def _tensor_configs(route: ServedVersion, most: int) -> Json:
    """Inputs and outputs, and how many rows go at a time; `most` where the model does not say."""
    batched = all(
        spec.shape[:1] == [-1] for spec in [*route.inputs, *route.outputs]
    )
    return {
        "max_batch_size": max(route.batch, most) if batched else 0,
        "input": [_tensor_config(spec, batched) for spec in route.inputs],
        "output": [
            {**_tensor_config(spec, batched), "label_filename": ""}
            for spec in route.outputs
        ],
    }


def _scheduling(route: ServedVersion) -> Json:
    """Replicas, and how calls are put into batches."""
    group = {
        "name": route.deployment,
        "kind": "KIND_CPU",
        "count": max(1, len(route.sockets)),
    }
    batching = {
        "preferred_batch_size": [route.batch] if route.batch else [],
        "max_queue_delay_microseconds": round(route.max_wait * 1e6),
    }
    return {"instance_group": [group], "dynamic_batching": batching}


def _model_parameters(route: ServedVersion) -> Json:
    named = {"model": route.model, "task": route.task, "kind": route.kind}
    return {name: {"string_value": value} for name, value in named.items()}


def _tensor_config(spec: TensorSpec, batched: bool) -> Json:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {
        "name": spec.name,
        "data_type": f"TYPE_{kind}",
        "dims": spec.shape[1:] if batched else spec.shape,
    }


def model_statistics(
    gateway: Gateway,
    caller: KeyInfo,
    name: str | None = None,
    version: str | None = None,
) -> Json:
    """`{"model_stats": [...]}` of one version, of all of a name, or of all models; times in
    nanoseconds.
    """
    return {
        "model_stats": [
            _statistics(route, gateway.statistics(route))
            for route in _chosen(gateway, caller, name, version)
        ]
    }


def _chosen(
    gateway: Gateway, caller: KeyInfo, name: str | None, version: str | None
) -> list[ServedVersion]:
    """One version, all of a name, or those of all models."""
    if name is None:
        every = gateway.routes(caller).values()
        return [one for route in every for one in versions(route)]
    route = gateway.route(caller, name, version)
    return [route] if version else versions(route)


def _statistics(route: ServedVersion, counted: Series) -> Json:
    return {
        "name": route.deployment,
        "version": str(route.version),
        "last_inference": int(counted.last * 1e3),
        "inference_count": counted.rows,
        "execution_count": counted.batches,
        "inference_stats": _durations(counted),
        "batch_stats": [],
        "memory_usage": [],
    }


def _durations(counted: Series) -> Json:
    done = counted.success
    return {
        "success": _duration(done, counted.success_seconds),
        "fail": _duration(counted.failure, counted.failure_seconds),
        "queue": _duration(done, counted.queue_seconds),
        "compute_input": _duration(done, counted.decode_seconds),
        "compute_infer": _duration(done, counted.run_seconds),
        "compute_output": _duration(done, counted.encode_seconds),
        "cache_hit": _duration(0, 0),
        "cache_miss": _duration(0, 0),
    }


def _duration(count: int, seconds: float) -> Json:
    return {"count": count, "ns": round(seconds * 1e9)}


def repository_index(
    gateway: Gateway, caller: KeyInfo, only_ready: bool = False
) -> list[Json]:
    """Every version that the caller can see: name, version, state and why."""
    return [
        row
        for row in _index(gateway, caller)
        if row["state"] == "READY" or not only_ready
    ]


def _index(gateway: Gateway, caller: KeyInfo) -> Iterator[Json]:
    for main in gateway.routes(caller).values():
        for route in versions(main):
            state, reason = _state(gateway, route)
            yield {
                "name": route.deployment,
                "version": str(route.version),
                "state": state,
                "reason": reason,
            }


def _state(gateway: Gateway, route: ServedVersion) -> tuple[str, str]:
    if not route.loaded:
        return "UNAVAILABLE", "unloaded"
    if route.error and not route.ready:
        return "UNAVAILABLE", route.error
    return ("READY", "") if is_ready(gateway, route) else ("LOADING", "")
