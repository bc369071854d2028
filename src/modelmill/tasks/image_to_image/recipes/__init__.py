"""Recipes of image-to-image: one file each."""
