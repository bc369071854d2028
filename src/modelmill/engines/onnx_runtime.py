"""ONNX Runtime's sessions, and its errors in plain words."""

import re
from pathlib import Path
from typing import Any

import onnxruntime as ort

from modelmill.errors import BundleCorrupt

ort.set_default_logger_severity(3)

CODE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?",
    re.DOTALL,
)
"""How the runtime's errors begin."""
SHORT_DATA = re.compile(
    r"External initializer: (.*?) offset: .* out of bounds", re.DOTALL
)


def load(path: Path, threads: int, optimise: bool = True) -> Any:
    """A session on so many threads; raises the runtime's own errors (see `reason`)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads spin between the operators of a run (sleeping there costs a tenth of the rate), but
    # not between runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimise:
        options.graph_optimization_level = (
            ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    return ort.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )


def open_graph(path: Path, threads: int) -> Any:
    """A session of a bundle's graph; raises `BundleCorrupt`."""
    try:
        return load(path, threads)
    # onnxruntime raises its own kinds, none of them public
    except Exception as error:
        raise BundleCorrupt(
            f"{path.name} can't be loaded: {reason(error)}"
        ) from error


def reason(error: Exception, limit: int = 200) -> str:
    """What the runtime says, without its code and our path; the common mistakes in plain words."""
    text = CODE.sub("", str(error))
    if "Protobuf parsing failed" in text or "No graph was found" in text:
        return "it is no ONNX model, or it was cut off"
    if external := _about_external_data(text):
        return external
    if "doesn't exist" in text:
        return "there is no such file"
    return text[:limit]


def _about_external_data(text: str) -> str:
    """What is wrong with weights that lie beside the graph; empty for another error."""
    if found := re.search(r'External data path does not exist: "(.*?)"', text):
        return f"its external data are missing: {Path(found[1]).name}"
    if found := SHORT_DATA.search(text):
        return f"its external data are too short: the weight '{found[1]}' is not in them"
    if "escapes model directory" in text or "Absolute path not allowed" in text:
        return "it names external data outside its folder"
    return ""
