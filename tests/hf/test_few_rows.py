"""The model's linear layers run our loops during a step of few rows, and are what they were at any other time."""

import pytest
import torch
from tests.hf.tiny import hf_greedy, prompts, tiny_model
from torch import nn

from infercore._jit import is_compiled
from infercore.hf import Engine
from infercore.hf import few_rows as module
from infercore.hf.few_rows import FewRows

pytestmark = pytest.mark.skipif(not is_compiled(), reason="without numba torch multiplies")


def count_calls(monkeypatch):
    seen = []

    def counted(x, weight, bias=None):
        seen.append(x.numel() // x.shape[-1])
        return linear(x, weight, bias)

    linear = module.linear
    monkeypatch.setattr(module, "linear", counted)
    return seen


def test_every_linear_layer_of_a_decoding_step_goes_through_the_loops(monkeypatch):
    model = tiny_model("llama")
    tokens, _ = hf_greedy(model, prompts()[0], 8)
    engine = Engine(model, num_pages=64, page_size=4)
    handle = engine.submit(engine.request(prompts()[0], max_new_tokens=8))[0]
    engine.step()
    seen = count_calls(monkeypatch)
    engine.step()
    assert seen == [1] * sum(type(m) is nn.Linear for m in model.modules())
    while engine.num_unfinished:
        engine.step()
    assert handle.completion.token_ids == tokens


def test_a_step_of_many_rows_leaves_the_layers_to_torch(monkeypatch):
    engine = Engine(tiny_model("llama"), num_pages=64, page_size=4)
    seen = count_calls(monkeypatch)
    engine.submit(engine.request([5] * 65, max_new_tokens=1))
    engine.step()
    assert not seen


def test_nothing_of_the_model_is_left_changed_even_after_an_error():
    model = tiny_model("llama")
    layers = FewRows(model)
    num_threads = torch.get_num_threads()
    before = {name: dict(layer.__dict__) for name, layer in model.named_modules()}

    def fail():
        with layers.during(1):
            assert all("forward" in layer.__dict__ for layer in layers._layers)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {name: dict(layer.__dict__) for name, layer in model.named_modules()} == before
    assert torch.get_num_threads() == num_threads


class OwnForward(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def test_layers_with_a_forward_of_their_own_keep_it():
    model = nn.Sequential(nn.Linear(4, 4), OwnForward(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).half(), nn.Linear(4, 4))
    original = model[2].forward
    model[2].forward = lambda x: original(x) * 2
    layers = FewRows(model)
    assert layers._layers == [model[0], model[4]]


def test_hooks_and_replaced_weights_are_honoured():
    layer = nn.Linear(6, 5)
    layers = FewRows(nn.Sequential(layer))
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    x = torch.randn(2, 6)
    with torch.no_grad(), layers.during(2):
        first = layer(x)
        layer.weight = nn.Parameter(layer.weight * 2)
        layer.bias.data = torch.zeros(5)
        second = layer(x)
        torch.testing.assert_close(second, x @ layer.weight.T)
        assert not torch.allclose(first, second)
    assert seen == [(2, 5), (2, 5)]
