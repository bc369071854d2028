"""Recipes of translation: one file each."""
