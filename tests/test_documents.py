"""The documents that people write: what they list is there."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))


def test_every_decision_has_a_heading_of_its_own_number():
    for file in DECISIONS:
        first = file.read_text().partition("\n")[0]
        assert re.fullmatch(rf"# {file.name[:4]}: \S.*", first), (
            file.name,
            first,
        )


def test_every_decision_is_listed():
    listed = re.findall(
        r"\(decisions/(\S+\.md)\)", (DOCS / "README.md").read_text()
    )
    assert listed == [file.name for file in DECISIONS]
