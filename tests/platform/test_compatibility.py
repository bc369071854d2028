"""Clients that others wrote work as they are: `make compatibility` shows the table."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import kit


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_acceptance_kit_finds_no_fault(
    shared: Callable[[str], Path], tmp_path: Path
) -> None:
    found = kit.run(shared("kit"), tmp_path)
    assert [outcome for outcome in found if outcome.state == "failed"] == []
    assert (
        len([outcome for outcome in found if outcome.state == "passed"]) >= 50
    )
