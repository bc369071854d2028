"""How language models are trained: to predict each next token of a passage."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.engines.onnx import INT8
from modelmill.tasks.base import Graph, Signature, TrainSettings

SCORE = "score"
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The cross-entropy of the next token in nats, over a random window of each passage."""
    ids, length = batch["ids"].long(), int(network.context) + 1  # type: ignore[arg-type]
    tokens = (ids != 0).sum(1)
    starts = (
        torch.rand(len(ids), device=ids.device)
        * (tokens - length + 1).clamp(min=1)
    ).long()
    positions = starts[:, None] + torch.arange(
        min(length, ids.shape[1]), device=ids.device
    )
    window = ids.gather(1, positions.clamp(max=ids.shape[1] - 1))
    return _cross_entropy(network, window)


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The cross-entropy over the beginning of each passage; `score` is the negative loss."""
    length = int(network.context) + 1  # type: ignore[arg-type]
    value = _cross_entropy(network, batch["ids"].long()[:, :length])
    return {"loss": value, "score": -value}


def _cross_entropy(network: nn.Module, window: Tensor) -> Tensor:
    logits = network(window[:, :-1]).float()
    return F.cross_entropy(
        logits.flatten(0, 1), window[:, 1:].flatten(), ignore_index=0
    )


def deployed(network: nn.Module, signature: Signature) -> dict[str, Graph]:
    """Graphs with a cache of keys and values: one with float weights, one with int8 weights."""
    from modelmill.tasks.networks.decoder_graph import decoder

    weights = {
        name: tensor.detach().cpu().numpy()
        for name, tensor in network.state_dict().items()
    }
    shape = {
        "layers": len(network.blocks),  # type: ignore[arg-type]
        "heads": int(network.heads),  # type: ignore[arg-type]
        "positions": signature.preprocessing.context,
    }
    return {
        name: Graph(
            decoder(weights, **shape, int8=bool(name)), signature.inputs, []
        )
        for name in ("", INT8)
    }
