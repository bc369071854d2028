"""Recipes of unconditional-image-generation: one file each."""
