"""Recurrent layers in `model.onnx`: one node a layer, for sequences of any length."""

import numpy as np
import onnx
import pytest

from modelmill.engines.onnx import OnnxSession
from modelmill.exporters.onnx import convert
from modelmill.types import TensorSpec

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # torch's of itself, as in a job


class Recurrent(torch.nn.Module):
    """A GRU or an LSTM, and its hidden states."""

    def __init__(self, kind, **options):
        super().__init__()
        self.layers = getattr(torch.nn, kind)(6, 5, batch_first=True, **options)

    def forward(self, x):
        return self.layers(x)[0]


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize(
    ("options", "nodes"),
    [
        ({}, 1),
        ({"num_layers": 2}, 2),
        ({"bidirectional": True}, 1),
        ({"num_layers": 2, "bidirectional": True}, 2),
    ],
)
def test_a_recurrent_layer_is_a_node(kind, options, nodes, tmp_path):
    network = Recurrent(kind, **options).eval()
    convert(
        network,
        [TensorSpec(name="x", datatype="FP32", shape=[-1, -1, 6])],
        [TensorSpec(name="states", datatype="FP32", shape=[-1, -1, 5])],
        tmp_path,
    )
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [node.op_type for node in graph.node].count(kind) == nodes
    session = OnnxSession(tmp_path / "model.onnx", threads=1)
    for rows, length in ((1, 1), (2, 70), (5, 3)):
        x = (
            np.random.default_rng(0)
            .normal(size=(rows, length, 6))
            .astype(np.float32)
        )
        with torch.inference_mode():
            wanted = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(
            session.run({"x": x})["states"], wanted, atol=1e-5
        )


def test_after_an_export_torch_runs_its_own_layers(tmp_path):
    network = Recurrent("GRU").eval()
    x = torch.zeros(1, 3, 6, requires_grad=True)
    given = TensorSpec(name="x", datatype="FP32", shape=[-1, -1, 6])
    states = TensorSpec(name="states", datatype="FP32", shape=[-1, -1, 5])
    convert(network, [given], [states], tmp_path)
    network.train()(
        x
    ).sum().backward()  # the operator of the export has no gradient
    assert x.grad.shape == x.shape
