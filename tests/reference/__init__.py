"""Reference models: small graphs and a test engine whose answers and misdeeds are known
beforehand.
"""
