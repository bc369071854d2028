"""How answers are compared: SQuAD's exact match and F1, by character where a script has no
spaces.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from modelmill.tasks.decoding.unspaced_scripts import UNSPACED

ARTICLES = re.compile(r"\b(a|an|the)\b")


def normal(text: str) -> str:
    """As the official script of SQuAD has it: lower case, without punctuation, articles and further
    spaces.

    Its punctuation is that of ASCII; where there are letters of scripts without spaces, their marks
    go as well.
    """
    own = UNSPACED.search(text) is not None
    plain = "".join(
        letter
        for letter in text.lower()
        if letter not in string.punctuation and not (own and _is_mark(letter))
    )
    return " ".join(ARTICLES.sub(" ", plain).split())


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "P"


def tokens(text: str) -> list[str]:
    """Words, and single characters of scripts without spaces."""
    return UNSPACED.sub(lambda found: f" {found[0]} ", normal(text)).split()


def exact(answer: str, truths: Sequence[str]) -> float:
    """1 where an answer is one of those that are right; nothing is right where there are none."""
    return float(any(normal(answer) == normal(truth) for truth in truths or [""]))


def f1(answer: str, truths: Sequence[str]) -> float:
    """The best F1 of tokens over all answers that are right."""
    return max(_f1(tokens(answer), tokens(truth)) for truth in truths or [""])


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    same = sum((Counter(said) & Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted))
