"""From a folder, a file or a zip to checked items with labels and splits, and to arrays for
training.
"""
