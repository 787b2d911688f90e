"""Whatever is done to a model's weights in the open is noticed once; what leaves them alone is not."""

import copy

import pytest
import torch
from tests.hf.tiny import tiny_model
from torch import nn

from infercore.hf.weights import WeightWatch


def layer(model):
    return model.model.layers[0].mlp


def in_place(model):
    layer(model).up_proj.weight.mul_(2)


def exchanged(model):
    layer(model).up_proj.weight = nn.Parameter(layer(model).up_proj.weight.clone())


def moved(model):
    layer(model).up_proj.weight.data = layer(model).up_proj.weight.data.clone()


def added(model):
    layer(model).register_parameter("extra", nn.Parameter(torch.zeros(3)))


def removed(model):
    layer(model).extra = nn.Parameter(torch.zeros(3))
    del layer(model).extra
    layer(model).up_proj.bias = nn.Parameter(torch.zeros(1))


def another_module(model):
    old = layer(model).up_proj
    layer(model).up_proj = nn.Linear(old.in_features, old.out_features, bias=False)


def loaded(model):
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})


@pytest.mark.parametrize("change", [in_place, exchanged, moved, added, removed, another_module, loaded])
def test_a_change_is_noticed_once_and_then_watched_too(change):
    model = copy.deepcopy(tiny_model("llama"))
    watch = WeightWatch(model)
    assert not watch.has_changed()
    with torch.no_grad():
        change(model)
        assert watch.has_changed()
        assert not watch.has_changed()
        for parameter in model.parameters():
            parameter.add_(1)
            assert watch.has_changed()
    assert not watch.has_changed()


def test_modules_that_come_and_go_without_parameters_change_nothing():
    model = copy.deepcopy(tiny_model("llama"))
    watch = WeightWatch(model)
    layer(model).act_fn = nn.ReLU()
    assert not watch.has_changed()
    model.eval().requires_grad_(False)
    assert not watch.has_changed()
    layer(model).up_proj = nn.Sequential(layer(model).up_proj)  # as adapters wrap a layer
    assert not watch.has_changed()
    with torch.no_grad():
        layer(model).up_proj[0].weight.zero_()
    assert watch.has_changed()


def test_weights_made_in_inference_mode_are_watched_by_their_place():
    with torch.inference_mode():
        model = nn.Linear(2, 2)
        watch = WeightWatch(model)
        assert not watch.has_changed()
        model.weight = nn.Parameter(torch.zeros(2, 2))
        assert watch.has_changed()
