"""Products of one input go into one launch: a pass over the graphs that torch.compile makes of a model's layers.

q, k and v, or gate and up, are found by what they are, products of the same tensor with weights that the layer was
given, whatever the model calls them.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from infercore.kernels import linear_group
from infercore.kernels.linear_group import MAX_WEIGHTS

_aten = torch.ops.aten


@torch.library.custom_op("infercore::linear_group", mutates_args=())
def _linear_group(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    return linear_group(x, weights)


@_linear_group.register_fake
def _(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    return [x.new_empty(x.shape[0], w.shape[0]) for w in weights]


def compile_options() -> dict[str, Any]:
    """What torch's own compiler takes as `options`, for products of one input to go into one launch."""
    return {"post_grad_custom_pre_pass": GroupProducts()}


class GroupProducts(CustomGraphPass):
    """Replaces `x @ w.T`, w among the graph's inputs, by `linear_group`, for one to three of the same x at a time."""

    def __call__(self, graph: fx.Graph) -> None:
        by_input: dict[object, list[tuple[fx.Node, fx.Node]]] = {}
        for node in graph.nodes:
            if (weight := _weight_of(node)) is not None:
                by_input.setdefault(_origin(node.args[0]), []).append((node, weight))
        for products in by_input.values():
            for first in range(0, len(products), MAX_WEIGHTS):
                _merge(graph, products[first : first + MAX_WEIGHTS])
        graph.lint()

    def uuid(self) -> str:
        """Names this version of the pass in torch's cache of compiled code."""
        return "infercore.group_products.1"


def _weight_of(node: fx.Node) -> fx.Node | None:
    """The weight `[outputs, inputs]` of a product with its transpose, if `node` is one."""
    if node.op != "call_function" or node.target is not _aten.mm.default:
        return None
    transposed: Any = node.args[1]
    if transposed.target not in (_aten.permute.default, _aten.t.default):
        return None
    if transposed.target is _aten.permute.default and list(transposed.args[1]) != [1, 0]:
        return None
    weight: fx.Node = transposed.args[0]
    return weight if weight.op == "placeholder" else None


def _origin(x: Any) -> object:
    """What tells whether two inputs are the same: the tensor of which they are views of one shape."""
    if isinstance(x, fx.Node) and x.target in (_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default):
        return x.args[0], str(x.meta["val"].shape)
    return x


def _merge(graph: fx.Graph, products: list[tuple[fx.Node, fx.Node]]) -> None:
    first, _ = products[0]
    weights = [weight for _, weight in products]
    with graph.inserting_before(first):
        group = graph.call_function(torch.ops.infercore.linear_group.default, (first.args[0], weights))
        group.meta["val"] = [node.meta["val"] for node, _ in products]
        outputs = [graph.call_function(operator.getitem, (group, i)) for i in range(len(products))]
    for (node, _), output in zip(products, outputs, strict=True):
        output.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(output)
        graph.erase_node(node)
