"""How models that write are trained: what comes next, at every place of a passage."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelmill.engines.onnx import INT8
from modelmill.tasks.base import Graph, Signature, TrainSettings

SCORE = "score"
Batch = dict[str, Tensor]


def loss(network: nn.Module, batch: Batch, settings: TrainSettings) -> Tensor:
    """The cross-entropy of the next token, in nats, over a window at a random place of each
    passage.
    """
    ids, length = batch["ids"].long(), int(network.context) + 1  # type: ignore[arg-type]
    filled = (ids != 0).sum(1)
    starts = (
        torch.rand(len(ids), device=ids.device) * (filled - length + 1).clamp(min=1)
    ).long()
    places = starts[:, None] + torch.arange(
        min(length, ids.shape[1]), device=ids.device
    )
    window = ids.gather(1, places.clamp(max=ids.shape[1] - 1))
    return _surprise(network, window)


def validate(
    network: nn.Module, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """The same over the beginning of each passage; `score` is larger where the surprise is
    smaller.
    """
    value = _surprise(network, batch["ids"].long()[:, : int(network.context) + 1])  # type: ignore[arg-type]
    return {"loss": value, "score": -value}


def _surprise(network: nn.Module, window: Tensor) -> Tensor:
    logits = network(window[:, :-1]).float()
    return F.cross_entropy(
        logits.flatten(0, 1), window[:, 1:].flatten(), ignore_index=0
    )


def deployed(network: nn.Module, signature: Signature) -> dict[str, Graph]:
    """Graphs that answer in steps: with weights as they are, and in 8 bits."""
    from modelmill.tasks.networks.decoder_graph import decoder

    weights = {
        name: tensor.detach().cpu().numpy()
        for name, tensor in network.state_dict().items()
    }
    shape = {
        "layers": len(network.blocks),  # type: ignore[arg-type]
        "heads": int(network.heads),  # type: ignore[arg-type]
        "places": signature.preprocessing.context,
    }
    return {
        name: Graph(decoder(weights, **shape, int8=bool(name)), signature.inputs, [])
        for name in ("", INT8)
    }
