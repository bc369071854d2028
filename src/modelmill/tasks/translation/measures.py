"""BLEU and chrF as sacrebleu computes them, and pictures of attention."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelmill.tasks.base import SAMPLES, Context, Evaluation, Measured
from modelmill.tasks.decoding.tokenizer import TOKENIZER, load_tokenizer
from modelmill.tasks.evaluation import figures
from modelmill.types import Json

READ = 8
"""Translations listed in the metrics as samples."""
SHOWN = 3
"""Translations whose attention is drawn."""
LONGEST = 24
"""Tokens on each axis of a drawing of attention."""
HAN = re.compile(r"[\u4e00-\u9fff]")
UNSPACED = re.compile(r"[\u3040-\u30ff\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f]")
"""Japanese syllables, Thai, Lao, Khmer, Burmese: no spaces between words."""


def measures(measured: Measured) -> Evaluation:
    """`bleu` and `chrf`, 0..100 over all sentences, with their sacrebleu signatures, and
    samples.
    """
    translations = [output["translation_text"] for output in measured.outputs]
    metrics = _scores(translations, measured.truths)
    rows = list(range(min(READ, len(translations))))
    sources = [str(source) for source in measured.show(rows)]
    metrics[SAMPLES] = [
        {
            "sentence": source,
            "translation": translations[row],
            "wanted": measured.truths[row][0],
        }
        for row, source in zip(rows, sources, strict=True)
    ]
    return Evaluation(
        metrics=metrics, pictures=_pictures(measured, sources[:SHOWN])
    )


def _scores(
    translations: Sequence[str], truths: Sequence[Sequence[str]]
) -> Json:
    """sacrebleu's figures, with the signatures that say how they were computed."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    references = _references(truths)
    bleu, chrf = BLEU(tokenize=tokenization(truths)), CHRF()
    return {
        "bleu": bleu.corpus_score(translations, references).score,
        "chrf": chrf.corpus_score(translations, references).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
        "items": len(translations),
    }


def _references(truths: Sequence[Sequence[str]]) -> Any:
    """The first translations of all sentences, the second ones, ...; None where there is none."""
    most = max(map(len, truths))
    padded = [[*one, *[None] * (most - len(one))] for one in truths]
    return [list(column) for column in zip(*padded, strict=True)]


def _pictures(measured: Measured, sources: Sequence[str]) -> dict[str, bytes]:
    """Where the tokens of the first translations looked, as far as they were answered."""
    return {
        f"attention-{row}.png": attention_picture(
            _pieces(source, measured.context), measured.outputs[row]
        )
        for row, source in enumerate(sources)
        if measured.outputs[row].get("attention")
    }


def tokenization(truths: Sequence[Sequence[str]]) -> str:
    """The name of sacrebleu's tokenizer for these texts: by character in scripts without spaces."""
    text = "".join(references[0] for references in truths[:200])
    if UNSPACED.search(text):
        return "char"
    return "zh" if len(HAN.findall(text)) > len(text) / 3 else "13a"


def _pieces(text: str, context: Context | None) -> list[str]:
    """The tokens of a sentence as texts; its words where there is no context."""
    if context is None:
        return text.split()
    tokenizer = load_tokenizer(context.folder / TOKENIZER)
    return [tokenizer.decode([one]) for one in tokenizer.encode(text)]


def attention_picture(source: Sequence[str], answer: Json) -> bytes:
    """The attention of each translated token over the source's tokens, as a PNG."""
    across, down = _ticks(source), _ticks(answer["target_tokens"])
    rows = np.array(answer["attention"], float)[:LONGEST, : max(1, len(across))]
    height, width = rows.shape
    figure = figures.blank(0.3 * width + 2, 0.3 * height + 1.5, fitted=False)
    axes = figure.subplots()
    axes.imshow(rows, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(down)), down, parse_math=False)
    axes.set_xticks(
        range(len(across)), across, rotation=60, ha="right", parse_math=False
    )
    axes.set_title("where each token looked", fontsize=9)
    return figures.as_png(figure, dpi=80, cut=True)


def _ticks(tokens: Sequence[str]) -> list[str]:
    """The tokens as they are written at an axis."""
    return [token.strip() or "·" for token in tokens[:LONGEST]]
