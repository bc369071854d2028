"""Importers: models as others write them, one file each."""
