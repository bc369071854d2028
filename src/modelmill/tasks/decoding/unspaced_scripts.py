"""Scripts that have no spaces between words."""

import re

UNSPACED = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
)
"""A letter of theirs: kana, Han, Thai and Lao, Burmese, Khmer."""


def joined(before: str, behind: str) -> str:
    """Two parts of a text, with a blank between them unless their script has none."""
    close = (
        not before
        or not behind
        or (UNSPACED.match(before[-1]) and UNSPACED.match(behind))
    )
    return f"{before}{'' if close else ' '}{behind}"
