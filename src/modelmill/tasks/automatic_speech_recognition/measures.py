"""Error rates of transcriptions, and a sheet of the worst."""

from collections.abc import Sequence

from modelmill.tasks.evaluation import figures


def error_rate(
    truths: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]
) -> float:
    """Insertions, deletions and substitutions per unit (word or character) of the truths, over all
    texts together.
    """
    wrong = sum(
        distance(truth, answer)
        for truth, answer in zip(truths, answers, strict=True)
    )
    return wrong / max(1, sum(map(len, truths)))


def distance(truth: Sequence[str], answer: Sequence[str]) -> int:
    """The edit distance of two sequences (Levenshtein 1966)."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(truth, answer)


def sheet(rows: Sequence[tuple[str, str, float]]) -> bytes:
    """Truths and transcriptions with their character error rates, line by line, as a PNG."""
    figure = figures.blank(10, 0.6 * len(rows) + 0.6)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(
        "the worst first: reference, and transcript (character error rate)",
        fontsize=10,
    )
    for number, row in enumerate(rows):
        y = 1 - (number + 0.5) / len(rows)
        axes.text(0, y, _line(*row), va="center", fontsize=9, parse_math=False)
    return figures.as_png(figure, dpi=90)


def _line(truth: str, answer: str, rate: float) -> str:
    return f"{truth[:110]}\n{answer[:110] or '(nothing)'}  ({rate:.2f})"
