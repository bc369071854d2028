"""Recipes of image-segmentation: one file each."""
