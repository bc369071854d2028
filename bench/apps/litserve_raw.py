"""LitServe with ONNX Runtime, raw bytes in and out, batched: `python litserve_raw.py NETWORK PORT`.

Runs in LitServe's own environment; knows nothing of the rest of the benchmark.
"""

import sys
from typing import Annotated, Any

import litserve
import numpy as np
import onnxruntime as ort
from fastapi import Body, Response

Raw = Annotated[bytes, Body(media_type="application/octet-stream")]


class Network(litserve.LitAPI):
    """One session of one thread; calls are stacked into a batch."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    def setup(self, device: str) -> None:
        """Load the network in the worker."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )
        given = self.session.get_inputs()[0]
        self.name, self.shape = given.name, given.shape[1:]

    def decode_request(self, request: Raw) -> np.ndarray[Any, Any]:
        """The bytes of one item."""
        return np.frombuffer(request, np.float32).reshape(self.shape)

    def batch(self, inputs: list[Any]) -> np.ndarray[Any, Any]:
        """Items as one array."""
        return np.stack(inputs)

    def predict(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Scores of a batch."""
        return self.session.run(None, {self.name: x})[0]

    def unbatch(self, output: np.ndarray[Any, Any]) -> list[Any]:
        """A row for each item."""
        return list(output)

    def encode_response(self, output: np.ndarray[Any, Any]) -> Response:
        """The bytes of one row."""
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Network(sys.argv[1], max_batch_size=32, batch_timeout=0)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=1,
        fast_queue="--zmq" in sys.argv,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        generate_client_file=False,
        log_level="warning",
        num_api_servers=2,
    )
