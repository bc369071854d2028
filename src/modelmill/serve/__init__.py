"""Serving: the gateway that users call and the workers that own the models."""
