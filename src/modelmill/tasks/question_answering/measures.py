"""SQuAD's exact match and F1; by character in scripts without spaces."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from modelmill.tasks.decoding.unspaced_scripts import UNSPACED

ARTICLES = re.compile(r"\b(a|an|the)\b")


def normal(text: str) -> str:
    """A text as SQuAD's official script normalises it: lower case, without punctuation, articles
    and repeated spaces.

    The script knows ASCII punctuation alone; in scripts without spaces all punctuation is removed.
    """
    unspaced = UNSPACED.search(text) is not None
    plain = "".join(
        letter
        for letter in text.lower()
        if letter not in string.punctuation
        and not (unspaced and _is_mark(letter))
    )
    return " ".join(ARTICLES.sub(" ", plain).split())


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "P"


def tokens(text: str) -> list[str]:
    """Words of a normalised text, and single characters of scripts without spaces."""
    return UNSPACED.sub(lambda match: f" {match[0]} ", normal(text)).split()


def exact(answer: str, truths: Sequence[str]) -> float:
    """1 where an answer equals one of the truths; without truths the empty answer is right."""
    return float(
        any(normal(answer) == normal(truth) for truth in truths or [""])
    )


def f1(answer: str, truths: Sequence[str]) -> float:
    """The best F1 of the answer's tokens over all truths."""
    return max(_f1(tokens(answer), tokens(truth)) for truth in truths or [""])


def _f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    same = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * same / (len(predicted) + len(expected))
