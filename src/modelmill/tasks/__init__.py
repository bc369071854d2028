"""Tasks: one folder each, named as on the Hugging Face hub."""
