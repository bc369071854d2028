"""Recurrent layers as one node of the graph each.

To find the shapes of a GRU or an LSTM, torch's exporter runs it cell by cell over the length of the
example, once for each of its passes: minutes, where the node itself takes none. So while a network
is exported its recurrent layers are operators of our own, whose shapes are known, and which are
written by the same function as torch's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Translations = dict[Callable[..., Any], Callable[..., Any]]


@torch.library.custom_op("modelmill::gru", mutates_args=())
def gru(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """As `torch.gru`."""
    options = (num_layers, dropout, train, bidirectional, batch_first)
    return torch.gru(input, hx, list(params), has_biases, *options)


@torch.library.custom_op("modelmill::lstm", mutates_args=())
def lstm(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `torch.lstm`."""
    options = (num_layers, dropout, train, bidirectional, batch_first)
    return torch.lstm(input, list(hx), list(params), has_biases, *options)


@gru.register_fake
def _gru_shapes(
    input: Tensor, hx: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    return _outputs(input, hx, bidirectional=options[-2]), torch.empty_like(hx)


@lstm.register_fake
def _lstm_shapes(
    input: Tensor, hx: Sequence[Tensor], *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    states = [torch.empty_like(state) for state in hx]
    return (
        _outputs(input, hx[0], bidirectional=options[-2]),
        states[0],
        states[1],
    )


def _outputs(input: Tensor, hx: Tensor, *, bidirectional: bool) -> Tensor:
    """The hidden states of all steps, of both directions side by side."""
    width = hx.shape[-1] * (2 if bidirectional else 1)
    return input.new_empty(*input.shape[:-1], width)


@contextmanager
def recurrent_layers_as_nodes() -> Iterator[Translations]:
    """Inside, `nn.GRU` and `nn.LSTM` call the operators; yields how the exporter writes them."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_gru, aten_lstm

    functions: Any = torch._VF
    functions.gru, functions.lstm = gru, lstm
    try:
        yield {
            torch.ops.modelmill.gru.default: aten_gru,
            torch.ops.modelmill.lstm.default: aten_lstm,
        }
    finally:
        del functions.gru, functions.lstm  # torch's own come to light again
