"""What a kind of jobs is: its request, how it runs, and what is kept of it."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from modelmill.control.kinds import (
    COMPUTE,
    INTAKE,
    JobKind,
    JobStores,
    Order,
    R,
    Request,
)
from modelmill.types import JobSpec, Json

if TYPE_CHECKING:
    from modelmill.jobs.process import Events, Stop

__all__ = ["COMPUTE", "INTAKE", "JobStores", "Kind", "Order", "Request"]


class Kind(JobKind[R], ABC):
    """A kind of jobs with its work."""

    @abstractmethod
    def run(self, spec: JobSpec, events: "Events", stop: "Stop") -> Json:
        """The work, in a process of its own that knows no database; the result is a JSON object, of
        which `metrics` are shown first.

        Files go into `spec.folder`, pictures into `pictures` in it. Raises `MillError` for a
        failure in words, and `Interrupted` once `stop.requested`, where the job can go on later.
        """
