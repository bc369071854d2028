"""Tasks: one folder each, named as on the Hugging Face hub."""

SHARED = (
    "decoding",
    "evaluation",
    "inputs",
    "kinds",
    "networks",
    "parameters",
    "training_settings",
)
"""What tasks share: no tasks themselves."""
