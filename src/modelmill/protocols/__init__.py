"""Protocols: one file each. They know bytes and status codes, and call the gateway's one
`predict`.
"""

SHARED = {"browser"}
"""Modules that are no protocols."""
