"""Where every job process begins: the kind of the job says what it does."""

from modelmill import plugins
from modelmill.cluster.child import Report
from modelmill.control.kinds import KINDS
from modelmill.jobs.kinds.base import Kind, Request
from modelmill.jobs.process import Events, Stop, run
from modelmill.types import JobSpec, Json


def main(spec: bytes, report: Report) -> int:
    """Entry of the job process."""
    return run(spec, work)


def work(spec: JobSpec, events: Events, stop: Stop) -> Json:
    """The work of the job's kind; raises `NotFound` for one that is not installed."""
    kind: Kind[Request] = plugins.load(KINDS, spec.kind).KIND
    return kind.run(spec, events, stop)
