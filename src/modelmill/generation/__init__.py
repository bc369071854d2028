"""Texts that grow token by token: how each token is chosen, and many texts beside one another."""
