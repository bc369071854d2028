"""Protocols: a file or a folder each. They know bytes and status codes, and call the gateway's one
`predict`.
"""

SHARED = {"app", "browser", "inputs", "keys", "rows", "streams"}
"""Modules that are no protocols."""
