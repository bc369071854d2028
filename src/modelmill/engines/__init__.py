"""Engines: one runtime each, one file each."""

SHARED = ("onnx_file", "signal_stack", "onnx_runtime", "onnx_steps")
"""Modules that engines share, which are none."""
