"""Metrics and pictures of an evaluation that several tasks share."""
