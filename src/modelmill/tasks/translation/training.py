"""How translators are trained: each next token, from all before it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Graph, Signature, TrainSettings
from modelmill.tasks.decoding.text_tokenizer import sizes
from modelmill.tasks.networks.seq2seq import graphs
from modelmill.tasks.networks.transformer import shortened

__all__ = ["SCORE", "deployed", "loss", "sizes", "validate"]

SCORE = "score"
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The smoothed cross-entropy of the translation's tokens, in nats."""
    logits, wanted = _told(network, batch)
    return F.cross_entropy(logits, wanted, label_smoothing=settings.label_smoothing)


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The same without smoothing, and the share of tokens that are the likeliest; `score` is larger
    for less loss.
    """
    logits, wanted = _told(network, batch)
    value = F.cross_entropy(logits, wanted)
    return {
        "loss": value,
        "score": -value,
        "accuracy": (logits.argmax(1) == wanted).float().mean(),
    }


def _told(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of every token of the translations, and the tokens."""
    ids, target = shortened(batch["ids"].long()), shortened(batch["target"].long())
    return network.told(network(ids, target)).float(), target[target != 0]  # type: ignore[operator]


def deployed(network: nn.Module, signature: Signature) -> dict[str, Graph]:
    """Its two graphs."""
    ids = signature.inputs[0]
    free = type(ids)(name=ids.name, datatype=ids.datatype, shape=[-1, -1])
    torch.clear_autocast_cache()
    return graphs(network.eval(), free, signature.preprocessing.tokens)
