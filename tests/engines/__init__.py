"""What is special about one engine; what all promise is in `tests/contract/test_engines.py`."""
