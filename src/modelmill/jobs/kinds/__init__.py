"""Kinds of jobs: one module each, found by its file name.

A module has one object, `KIND`, of a class derived from `base.Kind`. It is imported by the gateway
and by the supervisor: what its work needs is imported where the work is done.
"""
