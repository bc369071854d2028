"""Recipes of object-detection: one file each."""
