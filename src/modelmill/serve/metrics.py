"""The observer that counts: calls by version for the metrics, and what each key has used."""

from modelmill.serve.landed import Landed, Observer
from modelmill.serve.meter import Meter


def count_into(meter: Meter) -> Observer:
    """An observer that counts into a meter. Calls that reached no queue are not counted; what a key
    has used is that of its answered calls, and of streams up to where they ended.
    """

    accounts = meter.usage

    def count(landed: Landed) -> None:
        series = landed.series
        if series is None:
            return
        good = landed.error is None
        series.answered(landed.protocol, landed.ended - landed.started, good)
        usage = landed.usage
        if not (good or usage):
            return
        picked = landed.picked
        payer = (picked.project, landed.caller.name, picked.deployment)
        used = accounts.get(payer)
        if used is None:
            used = meter.usage_of(*payer)
        if good:
            used["requests"] = used.get("requests", 0) + 1
        for unit, amount in usage.items():
            used[unit] = used.get(unit, 0) + amount
        if "prompt_tokens" in usage:
            series.prompt_tokens += int(usage["prompt_tokens"])
        if "completion_tokens" in usage:
            series.completion_tokens += int(usage["completion_tokens"])

    return count
