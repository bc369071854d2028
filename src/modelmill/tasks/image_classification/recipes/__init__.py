"""Recipes of image-classification: one file each."""
