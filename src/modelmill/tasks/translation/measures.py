"""BLEU and chrF as sacrebleu computes them, and pictures of attention."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelmill.tasks.base import SAMPLES, Context, Evaluation, Measured
from modelmill.tasks.decoding.tokenizer import TOKENIZER, load_tokenizer
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
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    translations = [output["translation_text"] for output in measured.outputs]
    references = max(len(truths) for truths in measured.truths)
    expected: Any = [
        [truths[number] if number < len(truths) else None for truths in measured.truths]
        for number in range(references)
    ]
    bleu, chrf = BLEU(tokenize=tokenization(measured.truths)), CHRF()
    metrics: Json = {
        "bleu": bleu.corpus_score(translations, expected).score,
        "chrf": chrf.corpus_score(translations, expected).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
        "items": len(translations),
    }
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
    pictures = {
        f"attention-{row}.png": attention_picture(
            _pieces(source, measured.context), measured.outputs[row]
        )
        for row, source in zip(rows[:SHOWN], sources, strict=False)
        if measured.outputs[row].get("attention")
    }
    return Evaluation(metrics=metrics, pictures=pictures)


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
    from matplotlib.figure import Figure

    rows = np.array(answer["attention"], float)[:LONGEST]
    across = [token.strip() or "·" for token in source[:LONGEST]]
    rows = rows[:, : max(1, len(across))]
    figure = Figure(figsize=(0.3 * rows.shape[1] + 2, 0.3 * rows.shape[0] + 1.5))
    axes = figure.subplots()
    axes.imshow(rows, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    labels: Any = [token.strip() or "·" for token in answer["target_tokens"][:LONGEST]]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_xticks(
        range(len(across)), across, rotation=60, ha="right", parse_math=False
    )
    axes.set_title("where each token looked", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, bbox_inches="tight")
    return buffer.getvalue()
