"""The messages of our gRPC services, in a pool of their own.

Clients of the same protocol register the same names in protobuf's default pool, and a name can be
registered there only once: with a private pool this package can share a process with any of them.
`make proto` writes the descriptors.
"""

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import (
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

NEW, OLD = "grpc.reflection.v1", "grpc.reflection.v1alpha"


@cache
def pool() -> Any:
    """The pool with all services and messages."""
    made = DescriptorPool()
    compiled = FileDescriptorSet.FromString(
        (
            files("modelmill.protocols.v2.grpc") / "proto/descriptors.binpb"
        ).read_bytes()
    )
    for file in compiled.file:
        made.Add(file)
        if file.package == NEW:
            made.Add(_older(file))
    return made


def message(name: str) -> Any:
    """The class of a message by its full name, as `inference.ModelInferRequest`."""
    return GetMessageClass(pool().FindMessageTypeByName(name))


def services() -> list[Any]:
    """The descriptors of all services."""
    names = (
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        *(f"{v}.ServerReflection" for v in (NEW, OLD)),
    )
    return [pool().FindServiceByName(name) for name in names]


def _older(file: Any) -> Any:
    """The file of the older reflection package, whose messages are the same."""
    copy = FileDescriptorProto()
    copy.CopyFrom(file)
    copy.name, copy.package = copy.name.replace(".proto", "_v1alpha.proto"), OLD
    for method in copy.service[0].method:
        method.input_type = method.input_type.replace(NEW, OLD)
        method.output_type = method.output_type.replace(NEW, OLD)
    for kind in copy.message_type:
        _rename_fields(kind)
    return copy


def _rename_fields(kind: Any) -> None:
    for field in kind.field:
        if field.type_name:
            field.type_name = field.type_name.replace(NEW, OLD)
