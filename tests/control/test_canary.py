"""When a canary has shown that it is worse."""

import pytest

from modelmill.control.reconciler.canary import Judge, Tally, verdict
from modelmill.types import Variant

LIMITS = Variant(
    model="m", version=2, max_error_rate=0.05, max_slowdown=3.0, min_requests=20
)
GOOD = Tally(1000, 0, 10.0)  # 10 ms a request


@pytest.mark.parametrize(
    ("canary", "main", "why"),
    [
        (Tally(), GOOD, ""),
        (Tally(0, 19), GOOD, ""),  # too few to say
        (Tally(0, 20), GOOD, "20 of 20 requests failed (limit 5%)"),
        (Tally(95, 5, 0.95), GOOD, ""),
        (Tally(94, 6, 0.94), GOOD, "6 of 100 requests failed"),
        (
            Tally(80, 20, 0.8),
            Tally(80, 20, 0.8),
            "",
        ),  # the main version fails as often: so do its callers
        (Tally(70, 30, 0.7), Tally(80, 20, 0.8), "30 of 100 requests failed"),
        (Tally(50, 50, 0.5), Tally(), "50 of 100"),
        (Tally(100, 0, 3.4), GOOD, ""),
        (
            Tally(100, 0, 3.6),
            GOOD,
            "it took 36.0 ms a request, the main version 10.0 ms (limit 3 times)",
        ),
        (
            Tally(100, 0, 0.5),
            Tally(1000, 0, 1.0),
            "",
        ),  # 5 ms against 1 ms: it is called seldom
        (Tally(100, 0, 99.0), Tally(19, 0, 0.1), ""),  # nothing to compare with
        (Tally(0, 100), Tally(0, 100), ""),
    ],
)
def test_a_canary_goes_when_it_fails_more_or_is_slower(canary, main, why):
    said = verdict(canary, main, LIMITS)
    assert said.startswith(why) if why else said == ""


def test_only_what_came_after_its_appointment_is_judged():
    judge = Judge(("m", 1), Tally(5, 500, 1.0), Tally(10_000, 3000, 900.0))
    assert (
        judge.verdict(Tally(105, 500, 2.0), Tally(10_100, 3000, 901.0), LIMITS)
        == ""
    )
    assert "10 of 110" in judge.verdict(
        Tally(105, 510, 2.0), Tally(10_100, 3000, 901.0), LIMITS
    )
