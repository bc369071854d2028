"""Scripts without spaces between words."""

import re

UNSPACED = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
)
"""A character of kana, Han, Thai, Lao, Burmese or Khmer."""


def joined(left: str, right: str) -> str:
    """Two parts of a text, joined by a space unless their script has none."""
    unspaced = (
        left and right and UNSPACED.match(left[-1]) and UNSPACED.match(right)
    )
    space = " " if left and right and not unspaced else ""
    return f"{left}{space}{right}"
