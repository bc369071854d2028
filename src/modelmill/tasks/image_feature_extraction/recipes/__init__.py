"""Recipes of image-feature-extraction: one file each."""
