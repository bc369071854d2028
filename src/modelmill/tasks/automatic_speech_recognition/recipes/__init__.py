"""Recipes of automatic-speech-recognition: one file each."""
