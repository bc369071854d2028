"""Torch networks, losses and graphs that several tasks share."""
