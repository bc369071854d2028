"""Recipes of text-classification: one file each."""
