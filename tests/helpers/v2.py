"""What the tests of the Open Inference Protocol share: a model that answers its inputs, and calls
to it.
"""

import json

from modelmill.serve.wire import Answer, Tensor
from modelmill.types import TensorSpec
from tests.helpers.gateways import a_route

HEADER = "inference-header-content-length"


def mirrored(call):
    """The inputs of a call as its outputs."""
    tensors = [
        Tensor(f"{t.name}_out", t.datatype, t.shape, t.data)
        for t in call.tensors
    ]
    return Answer(call.id, tensors=tensors)


async def mirror(calls):
    """Answers the inputs themselves, with the batch of the first."""
    return [mirrored(call) for call in calls]


def a_mirror(name, *specs, **changed):
    inputs = [TensorSpec(name=n, datatype=d, shape=s) for n, d, s in specs]
    outputs = [
        TensorSpec(name=f"{n}_out", datatype=d, shape=s) for n, d, s in specs
    ]
    return a_route(name, inputs=inputs, outputs=outputs, **changed)


def tensor(data=None, shape=(1, 2), datatype="FP32", name="x", **rest):
    entry = {"name": name, "shape": list(shape), "datatype": datatype, **rest}
    return entry if data is None else {**entry, "data": data}


def infer(api, model, *inputs, headers=None, tail=b"", **rest):
    head = json.dumps({"inputs": list(inputs), **rest}).encode()
    return api.ask("POST", f"/v2/models/{model}/infer", head + tail, headers)


def binary(api, model, *inputs, tail=b"", **rest):
    head = json.dumps({"inputs": list(inputs), **rest}).encode()
    headers = {HEADER: str(len(head))}
    return api.ask("POST", f"/v2/models/{model}/infer", head + tail, headers)


def refused(reply, *says):
    assert reply.status == 400, reply
    assert reply.json.keys() == {"error"}
    for words in says:
        assert words in reply.error
    assert len(reply.error) < 500
    return True


def outputs_of(reply):
    """Name, datatype, shape and raw data or JSON values of every output of an answer."""
    assert reply.status == 200, reply.body
    size = int(reply.headers.get(HEADER.encode(), len(reply.body)))
    rest, found = reply.body[size:], []
    for one in json.loads(reply.body[:size])["outputs"]:
        length = one.get("parameters", {}).get("binary_data_size")
        found.append(
            (
                one["name"],
                one["datatype"],
                one["shape"],
                one["data"] if length is None else rest[:length],
            )
        )
        rest = rest[length or 0 :]
    assert not rest
    return found
