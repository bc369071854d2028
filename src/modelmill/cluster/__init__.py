"""Clusters: where workers and jobs run, one file each."""
