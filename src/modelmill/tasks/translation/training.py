"""How translation models are trained: to predict each next token from the source and the tokens
before it (teacher forcing).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.tasks.base import Graph, Signature, TrainSettings
from modelmill.tasks.decoding.text_tokenizer import sizes
from modelmill.tasks.networks.seq2seq import graphs
from modelmill.tasks.networks.token_ids import shortened

__all__ = ["SCORE", "deployed", "loss", "sizes", "validate"]

SCORE = "score"
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The cross-entropy of the target's tokens in nats, with label smoothing."""
    logits, tokens = _logits(network, batch)
    return F.cross_entropy(
        logits, tokens, label_smoothing=settings.label_smoothing
    )


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """Cross-entropy without smoothing, the share of tokens predicted right (`accuracy`), and
    `score`, the negative loss.
    """
    logits, tokens = _logits(network, batch)
    value = F.cross_entropy(logits, tokens)
    return {
        "loss": value,
        "score": -value,
        "accuracy": (logits.argmax(1) == tokens).float().mean(),
    }


def _logits(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of all tokens of the targets [tokens, vocabulary], and the tokens [tokens]."""
    ids, target = (
        shortened(batch["ids"].long()),
        shortened(batch["target"].long()),
    )
    logits = network.logits(network(ids, target))  # type: ignore[operator]
    return logits.float(), target[target != 0]


def deployed(network: nn.Module, signature: Signature) -> dict[str, Graph]:
    """The graphs `begin` and `step`, with free batch and length."""
    ids = signature.inputs[0]
    free = type(ids)(name=ids.name, datatype=ids.datatype, shape=[-1, -1])
    torch.clear_autocast_cache()
    return graphs(network.eval(), free, signature.preprocessing.tokens)
