"""ONNX Runtime as a model of Triton's Python backend: what `bench.peers` puts into Triton's model
repository.

The backend provides `triton_python_backend_utils` and calls `initialize` once and `execute` for
every batch.
"""

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as backend


class TritonPythonModel:
    """One session of one thread, one run for all requests that Triton hands over."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load `model.onnx` beside this file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        path = os.path.join(
            args["model_repository"], args["model_version"], "model.onnx"
        )
        self.session = ort.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.input, self.output = (
            self.session.get_inputs()[0].name,
            self.session.get_outputs()[0].name,
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request."""
        inputs = [
            backend.get_input_tensor_by_name(request, self.input).as_numpy()
            for request in requests
        ]
        joined = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
        outputs = self.session.run(None, {self.input: joined})[0]
        responses, at = [], 0
        for one in inputs:
            rows = outputs[at : at + len(one)]
            responses.append(
                backend.InferenceResponse([backend.Tensor(self.output, rows)])
            )
            at += len(one)
        return responses
