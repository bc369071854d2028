"""Engines: one runtime each, one file each."""
