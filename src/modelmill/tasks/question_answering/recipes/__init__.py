"""Recipes of question-answering: one file each."""
