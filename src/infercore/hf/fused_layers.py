"""A model's layers through torch.compile, for the length of a capture: fewer, fused kernels in the graph.

The model is not changed: while a forward is captured, calling a layer looks up a compiled `forward`. Attention is left
out of the compiled code, which is cut there; all layers share what is compiled. It takes its time once a machine,
because torch keeps compiled code on disk.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from infercore.hf.fused_products import compile_options
from infercore.kernels import linear_group

_made: "WeakKeyDictionary[nn.Module, FusedLayers]" = WeakKeyDictionary()


class FusedLayers:
    """The layers of `model` that repeat, to be compiled at their first use.

    Results differ from the eager forward by rounding: what stays in registers between fused operations is not rounded
    to the model's dtype there.

    Args:
        backend: of torch.compile. With torch's own, products of one input go into one launch (`fused_products.py`).
    """

    def __init__(self, model: nn.Module, *, backend: str = "inductor") -> None:
        self._layers = repeated_layers(model)
        self._head = _plain_head(model)
        self._backend = backend
        self._options = compile_options() if backend == "inductor" else None
        self._compiled: dict[type, Callable[..., Any]] = {}

    @classmethod
    def of(cls, model: nn.Module) -> "FusedLayers":
        """Those of `model`, made once: whoever captures it shares what is compiled."""
        if model not in _made:
            _made[model] = cls(model)
        return _made[model]

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @contextmanager
    def during(self) -> Iterator[None]:
        """Within this, layers called without gradients run compiled."""
        try:
            for layer in self._layers:
                kind = type(layer)
                if kind not in self._compiled:
                    self._compiled[kind] = torch.compile(
                        kind.forward, dynamic=True, backend=self._backend, options=self._options
                    )
                layer.__dict__["forward"] = types.MethodType(self._compiled[kind], layer)
            if self._head is not None:
                self._head.__dict__["forward"] = types.MethodType(_product, self._head)
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)
            if self._head is not None:
                self._head.__dict__.pop("forward", None)


def _plain_head(model: Any) -> nn.Linear | None:
    """The output embeddings, where they are a product and nothing else."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return head if type(head) is nn.Linear and head.bias is None and "forward" not in head.__dict__ else None


def _product(head: nn.Linear, x: Tensor) -> Tensor:
    (y,) = linear_group(x.reshape(-1, x.shape[-1]), [head.weight])
    return y.view(*x.shape[:-1], -1)


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The longest list of modules of one class, with no forward of their own (accelerate's hooks put one there)."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and len({type(x) for x in m}) == 1]
    layers = max((list(modules) for modules in lists), key=lambda modules: len(modules), default=[])
    return [] if any("forward" in layer.__dict__ for layer in layers) else layers
