"""Engines: one runtime each, one file each."""

SHARED = ("onnx_file", "signal_stack", "onnx_runtime", "onnx_steps")
"""What the engines for `model.onnx` have in common."""
