"""Linear layers of a model take `infercore.kernels.linear` for the length of a step of few rows.

Most of a decoding step on a CPU is the products of a few rows with the weights. Between steps, and for all rows of
others, the model's layers are what they were: nothing is replaced but, while the step runs, the `forward` that calling
the layer looks up.
"""

import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from infercore._jit import is_compiled
from infercore.kernels.linear import MAX_ROWS, awake, linear


class FewRows:
    """The linear layers of `model` that can be had faster: those of type `nn.Linear` itself, in float32 on the CPU.

    Looked for once; weights may be written, replaced or moved later, and are looked at in every call.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if _is_plain(module)] if is_compiled() else []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def during(self, num_rows: int) -> AbstractContextManager[None]:
        """For one step of `num_rows` rows: the forward, and what is done with its logits.

        torch runs on one thread meanwhile: its threads go on spinning after each of its own loops, and would take the
        cores from ours.
        """
        if not self._layers or num_rows > MAX_ROWS:
            return nullcontext()
        return self._faster()

    @contextmanager
    def _faster(self) -> Iterator[None]:
        num_threads = torch.get_num_threads()
        with awake(num_threads):
            try:
                if num_threads > 1:
                    torch.set_num_threads(1)
                for layer in self._layers:
                    layer.__dict__["forward"] = types.MethodType(_forward, layer)
                yield
            finally:
                for layer in self._layers:
                    layer.__dict__.pop("forward", None)
                if num_threads > 1:
                    torch.set_num_threads(num_threads)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def _is_plain(module: nn.Module) -> bool:
    """A layer whose class is `nn.Linear`, with no forward of its own (accelerate's hooks put one there)."""
    return (
        type(module) is nn.Linear
        and "forward" not in module.__dict__
        and module.weight.dtype is torch.float32
        and module.weight.device.type == "cpu"
    )
