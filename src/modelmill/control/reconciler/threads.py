"""How many threads a worker gets."""

from collections.abc import Iterable, Mapping

from modelmill.control.db import Deployment
from modelmill.control.options import options_of
from modelmill.control.reconciler.scaling import share


def plan_threads(
    rows: Iterable[Deployment], counts: Mapping[int, int], cores: int
) -> int:
    """Threads of each worker without a fixed number, by the desired number of workers of each
    deployment.

    Planned for the most workers of each deployment: else each new worker would replace all others.
    """
    fixed = automatic = 0
    for row in rows:
        options = options_of(row)
        count = (
            max(counts[row.id], options.max_replicas) if counts[row.id] else 0
        )
        count += len(row.variants) if row.loaded else 0
        fixed += count * options.threads
        automatic += 0 if options.threads else count
    return share(cores, fixed, automatic)
