"""Protocols: one file each. They know bytes and status codes, and call the gateway's one
`predict`.
"""
