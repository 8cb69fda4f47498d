"""Grad-CAM at an attention map, in a form that exports.

Selvaraju et al., Grad-CAM (arXiv:1610.02391). An exported graph has no autograd: the gradient is
taken once, symbolically, and its operations become part of the graph.
"""

import warnings
from collections.abc import Collection
from itertools import count, islice
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from vlserve.models.attention import AttentionMap


class AttentionGradCam(nn.Module):
    """Runs ``scorer``, in which the attention map ``at`` is used once.

    Inputs: the scorer's. Outputs: its logits (batch, n), and the map times the positive part of the
    gradient, with respect to the map, of the last logit: (batch, heads, queries, keys).
    """

    def __init__(self, scorer: nn.Module, at: AttentionMap, example: tuple[Tensor, ...]) -> None:
        """``example``: inputs whose dynamic sizes are like no other size, see `free_sizes`."""
        super().__init__()
        self.scorer = scorer
        self.at = at
        self.captured = self._capture(example)

    def scripted(self) -> nn.Module:
        """Return the module for TorchScript, whose traces would bake the captured graph's sizes
        in."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated since torch 2.11, and remarks on fx
            return cast("nn.Module", torch.jit.script(self.captured))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_exporting():
            return cast("tuple[Tensor, Tensor]", self.captured(*inputs))
        with torch.inference_mode(False):  # autograd takes no tensors of inference mode
            return self._differentiate(*(tensor.clone() for tensor in inputs))

    def _differentiate(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        maps: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            maps.append(output.detach().requires_grad_())
            return maps[0]

        hook = self.at.register_forward_hook(keep)
        try:
            with torch.enable_grad():
                logits = self.scorer(*inputs)
                (gradient,) = torch.autograd.grad(logits[:, -1].sum(), maps[0])
        finally:
            hook.remove()
        return logits.detach(), maps[0].detach() * gradient.clamp(min=0)

    def _capture(self, example: tuple[Tensor, ...]) -> fx.GraphModule:
        """Forward and backward as one graph of operations, with symbolic sizes."""
        trace = make_fx(
            lambda *inputs: self._differentiate(*inputs),
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,  # the scorer's weights
        )
        graph = trace(*example)
        for node in graph.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                node.target = node.target.overloadpacket  # the form that TorchScript reads
        graph.recompile()
        return graph


def free_sizes(exclusions: Collection[int], number: int) -> list[int]:
    """Return small sizes that differ from each other and from all ``exclusions``: symbolic tracing
    gives equal sizes one symbol."""
    return list(islice((size for size in count(5) if size not in exclusions), number))
