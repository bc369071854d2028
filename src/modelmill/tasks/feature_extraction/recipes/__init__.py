"""Recipes of feature-extraction: one file each."""
