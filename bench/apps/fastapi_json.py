"""FastAPI with ONNX Runtime as most would write it: a body model, lists of numbers, one call a
request.
"""

import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
session = ort.InferenceSession(
    os.environ["BENCH_NETWORK"], providers=["CPUExecutionProvider"]
)
name = session.get_inputs()[0].name


class Request(BaseModel):
    """A batch of items."""

    inputs: list[list[list[list[float]]]]


class Answer(BaseModel):
    """One row of scores for each item."""

    outputs: list[list[float]]


@app.post("/predict")
def predict(request: Request) -> Answer:
    """Scores for a batch."""
    array = np.asarray(request.inputs, np.float32)
    return Answer(outputs=session.run(None, {name: array})[0].tolist())
