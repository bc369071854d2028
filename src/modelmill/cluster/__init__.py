"""Clusters: where workers and jobs run, one file each."""

SHARED = ("child", "logs", "nursery")
"""What runs in the processes of a cluster: no clusters themselves."""
