"""The plain, slow forward of an EAGLE head: a whole path at once, no cache, no tree, written from the formats alone."""

import torch
from tests.hf.heads.checkpoints import CONFIGS, DIM, HEADS, HIDDEN, KV_HEADS

Tensors = dict[str, torch.Tensor]


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def project(flavour: str, w: Tensors, features: torch.Tensor) -> torch.Tensor:
    config = CONFIGS[flavour]
    if "eagle1" in flavour:
        return features
    if config.get("norm_before_fc"):
        features = rms(features, w["input_norm.weight"])
    if config.get("fc_norm"):
        thirds = features.split(HIDDEN, -1)
        features = torch.cat([rms(part, w[f"fc_norm.{i}.weight"]) for i, part in enumerate(thirds)], -1)
    return features @ w["fc.weight"].T


def path_outputs(
    flavour: str, w: Tensors, embedding: torch.Tensor, features: torch.Tensor, tokens: list[int]
) -> torch.Tensor:
    """Outputs `[len(tokens), hidden]` of the entries of `tokens`, the first of which have `features` before them.

    Entry i holds tokens[i], at position i; where features end, the output of the entry before takes their place. Each
    output is worked out anew from the whole path.
    """
    given = project(flavour, w, features)
    outputs: list[torch.Tensor] = []
    for length in range(len(given), len(tokens) + 1):
        hidden = torch.cat([given, *(out[None] for out in outputs)])[:length]
        outs = _layers(flavour, w, embedding[torch.tensor(tokens[:length])], hidden)
        if length == len(given):
            first = outs
        outputs.append(outs[-1])
    return torch.cat([first[:-1], torch.stack(outputs)])


def logits(flavour: str, w: Tensors, outputs: torch.Tensor, target_head: torch.Tensor) -> torch.Tensor:
    if "eagle1" in flavour:
        return outputs @ target_head.T
    if not CONFIGS[flavour].get("norm_output"):
        outputs = rms(outputs, w["norm.weight"])
    return outputs @ w["lm_head.weight"].T


def _layers(flavour: str, w: Tensors, embeds: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    config = CONFIGS[flavour]
    layer_config = config.get("transformer_layer_config", config)
    if "eagle1" in flavour:
        hidden = torch.cat([embeds, hidden], -1) @ w["fc.weight"].T + w.get("fc.bias", 0)
    for index in range(layer_config["num_hidden_layers"]):
        own = {name.removeprefix(f"layers.{index}."): t for name, t in w.items() if name.startswith(f"layers.{index}.")}
        x, residual = hidden, hidden
        if "hidden_norm.weight" in own:
            normed = rms(hidden, own["hidden_norm.weight"])
            residual = normed if config.get("norm_before_residual") else hidden
            x = torch.cat([rms(embeds, own["input_layernorm.weight"]), normed], -1)
        elif "input_layernorm.weight" in own:
            x = rms(hidden, own["input_layernorm.weight"])
        hidden = residual + _attention(layer_config, own, x)
        x = rms(hidden, own["post_attention_layernorm.weight"])
        gate = x @ own["mlp.gate_proj.weight"].T
        hidden = (
            hidden + (gate * torch.sigmoid(gate) * (x @ own["mlp.up_proj.weight"].T)) @ own["mlp.down_proj.weight"].T
        )
    return rms(hidden, w["norm.weight"]) if config.get("norm_output") else hidden


def _attention(config: dict, own: Tensors, x: torch.Tensor) -> torch.Tensor:
    length = len(x)
    theta = config.get("rope_theta", 10_000.0)
    stretch = (config.get("rope_scaling") or {}).get("factor", 1.0)
    out = torch.zeros(length, HEADS, DIM)
    projected = {name: (x @ own[f"self_attn.{name}_proj.weight"].T).view(length, -1, DIM) for name in "qkv"}
    for name in "qk":
        if f"self_attn.{name}_norm.weight" in own:
            projected[name] = rms(projected[name], own[f"self_attn.{name}_norm.weight"])
        pairs = torch.complex(*projected[name].split(DIM // 2, -1))
        angles = torch.arange(length)[:, None] / stretch * theta ** (-torch.arange(0, DIM, 2) / DIM)
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        projected[name] = torch.cat([turned.real, turned.imag], -1)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        scores = projected["q"][:, head] @ projected["k"][:, shared].T / DIM**0.5
        out[:, head] = torch.softmax(scores.masked_fill(future, float("-inf")), -1) @ projected["v"][:, shared]
    return out.flatten(1) @ own["self_attn.o_proj.weight"].T
