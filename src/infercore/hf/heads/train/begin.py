"""A head to start from: its layer is the target's last one, its output embeddings are the target's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infercore.hf.features import decoder_layers
from infercore.hf.heads.config import HeadConfig
from infercore.hf.heads.eagle import EagleHead

_NOISE = 0.02


def config_for(target: Any, *, draft_vocab_size: int, intermediate_size: int | None) -> HeadConfig:
    """An EAGLE-3 head of the target's own shape, features from the usual layers.

    Args:
        intermediate_size: of the head's feed-forward part; None: the target's.
    Raises: ValueError if the target has fewer than three layers.
    """
    text = target.config.get_text_config()
    number = int(text.num_hidden_layers)
    if number < 3:
        raise ValueError(f"the target has {number} layers, expected at least 3: features come from three of them")
    rope = getattr(text, "rope_parameters", None) or {}
    return HeadConfig(
        hidden_size=text.hidden_size,
        target_hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        draft_vocab_size=draft_vocab_size,
        intermediate_size=intermediate_size or getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        num_layers=1,
        num_heads=text.num_attention_heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        rms_norm_eps=getattr(text, "rms_norm_eps", 1e-6),
        max_position_embeddings=text.max_position_embeddings,
        rope={"rope_theta": float(rope["rope_theta"])} if "rope_theta" in rope else {},
        feature_layers=(2, number // 2, number - 3) if number > 5 else (0, number // 2, number - 1),
    )


def new_head(target: Any, config: HeadConfig, draft_ids: Tensor) -> EagleHead:
    """A head in float32 on the target's device, its weights taken from the target where they fit; others are drawn."""
    embedding = target.get_input_embeddings().weight.detach()
    head = EagleHead(config, is_eagle3=True, embedding=embedding)
    output = target.get_output_embeddings()
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, _NOISE)
        head.fc.weight[:, -config.target_hidden_size :] += torch.eye(config.hidden_size)
        if output is not None and output.weight.shape[1] == config.hidden_size:
            head.lm_head.weight.copy_(output.weight.detach().float()[draft_ids.to(output.weight.device)].cpu())
        _take_layer(head, dict(decoder_layers(target)[-1].named_parameters()), config)
        final = getattr(target.base_model, "norm", None)
        if isinstance(final, nn.Module):
            _take(head.norm, "weight", getattr(final, "weight", None))
        head.d2t.copy_(draft_ids - torch.arange(len(draft_ids)))
    return head.to(embedding.device)


def _take_layer(head: EagleHead, source: Mapping[str, Tensor], config: HeadConfig) -> None:
    layer = head.layers[0]
    for name in ("q_proj", "k_proj", "v_proj"):
        given = source.get(f"self_attn.{name}.weight")
        own = layer.get_parameter(f"self_attn.{name}.weight")
        if given is not None and given.shape == (own.shape[0], config.hidden_size):
            own[:, config.hidden_size :] = given.detach().float().cpu()  # the half that sees features
    for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm"):
        _take(layer.get_submodule(name), "weight", source.get(f"{name}.weight"))
    _take(layer.get_submodule("hidden_norm"), "weight", source.get("input_layernorm.weight"))


def _take(module: nn.Module, name: str, given: Tensor | None) -> None:
    own = module.get_parameter(name)
    if given is not None and given.shape == own.shape:
        own.copy_(given.detach().float().cpu())
