"""The pass over compiled layers: products of one input become one call, everything else stays."""

import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from infercore.hf.fused_products import GroupProducts

GROUP = torch.ops.infercore.linear_group.default


def layer(x, wq, wk, wv, wo, w4, w5):
    flat = x.view(-1, x.shape[-1])
    q, k, v = (F.linear(flat, w) for w in (wq, wk, wv))
    mixed = F.linear(q * k.sum(-1, keepdim=True) + v.sum(-1, keepdim=True), wo)
    fourth = F.linear(flat, w4)  # of the first input again: a second group
    computed = mixed @ (w5 * 2).T  # no weight of the layer's: stays a product
    return mixed + fourth, computed


def grouped(*inputs):
    traced = make_fx(layer)(*inputs)
    GroupProducts()(traced.graph)
    traced.recompile()
    return traced


def test_results_are_equal_and_products_of_one_input_are_one_call():
    torch.manual_seed(0)
    x = torch.randn(1, 5, 64, dtype=torch.double)
    weights = [torch.randn(64, 64, dtype=torch.double) for _ in range(6)]
    traced = grouped(x, *weights)
    for mine, theirs in zip(traced(x, *weights), layer(x, *weights), strict=True):
        torch.testing.assert_close(mine, theirs)
    sizes = [len(node.args[1]) for node in traced.graph.nodes if node.target is GROUP]
    assert sizes == [3, 1, 1]
    left = [node for node in traced.graph.nodes if node.target is torch.ops.aten.mm.default]
    assert len(left) == 1


def test_each_version_of_the_pass_has_a_name_for_the_cache_of_compiled_code():
    assert GroupProducts().uuid() == GroupProducts().uuid()
