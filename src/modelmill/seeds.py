"""Seeds of sampling: how one is drawn for a request that names none."""

import random

MOST = 2**63 - 1
"""The largest seed."""
BITS = 48
"""Length of a drawn seed: room below `MOST` for the seeds of a request's further answers."""


def draw() -> int:
    """A seed by chance.

    It is drawn once for a request, before the request is queued: a worker that takes over from a
    lost one, and a shadow, then sample the same answer.
    """
    return random.getrandbits(BITS)
