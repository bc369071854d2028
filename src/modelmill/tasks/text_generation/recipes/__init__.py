"""Recipes of text-generation: one file each."""
