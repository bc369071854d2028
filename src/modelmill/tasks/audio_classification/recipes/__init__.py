"""Recipes of audio-classification: one file each."""
