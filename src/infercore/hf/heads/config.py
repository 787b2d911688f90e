"""What a draft head's `config.json` says: those of the EAGLE authors, of SpecForge, of speculators and of Medusa."""

from dataclasses import dataclass, field
from typing import Any

from infercore.errors import CheckpointError

_SPECULATORS = ("eagle", "eagle3")
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """An EAGLE head. What only the weights tell (which EAGLE, biases, norms on Q and K) is not here.

    Args:
        feature_layers: the head's features are the inputs of these layers of the target (the number of layers stands
            for the output of the last one); None: 2, n // 2 and n - 3.
        target_hidden_size: width of one feature.
        rope: what the file says of rotary embeddings, in transformers' words.
        norm_before_residual: the residual of the first layer starts from the normed feature.
        norm_before_fc, fc_norm: one norm over all features together, or one norm for each.
        norm_output: the head goes on from its normed output (EAGLE-3.1).
    """

    hidden_size: int
    target_hidden_size: int
    vocab_size: int
    draft_vocab_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    rope: dict[str, Any] = field(default_factory=dict)
    feature_layers: tuple[int, ...] | None = None
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False


@dataclass(frozen=True, slots=True)
class MedusaConfig:
    """Medusa heads: how many, and residual blocks in each; sizes are those of the weights."""

    num_heads: int
    num_layers: int


def parse_config(content: dict[str, Any]) -> HeadConfig | MedusaConfig:
    """The head that a config describes.

    Raises: CheckpointError, saying which key is missing or foreign, and what was expected.
    """
    kind = content.get("speculators_model_type")
    if kind is not None:
        if kind not in _SPECULATORS:
            raise CheckpointError(
                f"config.json describes a speculator of type {kind!r}; expected one of {', '.join(_SPECULATORS)}"
            )
        return _speculators(content)
    if "medusa_num_heads" in content:
        return MedusaConfig(int(content["medusa_num_heads"]), int(content.get("medusa_num_layers", 1)))
    return _authors(content)


def _speculators(content: dict[str, Any]) -> HeadConfig:
    layer = content.get("transformer_layer_config")
    if not isinstance(layer, dict):
        raise CheckpointError("config.json is of speculators but has no transformer_layer_config; expected an object")
    ids = content.get("eagle_aux_hidden_state_layer_ids")
    return _head(layer, content, None if ids is None else tuple(int(i) for i in ids))


def _authors(content: dict[str, Any]) -> HeadConfig:
    inner = content.get("eagle_config") or {}
    ids = inner.get("eagle_aux_hidden_state_layer_ids")
    # There a layer is named by its number and its output is meant: the input of the one after it.
    return _head(content, content, None if ids is None else tuple(int(i) + 1 for i in ids))


def _head(layer: dict[str, Any], flags: dict[str, Any], feature_layers: tuple[int, ...] | None) -> HeadConfig:
    needed = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    if missing := [name for name in needed if not isinstance(layer.get(name), int)]:
        raise CheckpointError(
            f"config.json lacks {', '.join(missing)}; expected the config of an EAGLE head (of its authors, SpecForge "
            "or speculators) or of Medusa (medusa_num_heads)"
        )
    hidden, heads = layer["hidden_size"], layer["num_attention_heads"]
    vocab = layer["vocab_size"]
    return HeadConfig(
        hidden_size=hidden,
        target_hidden_size=flags.get("target_hidden_size") or hidden,
        vocab_size=vocab,
        draft_vocab_size=flags.get("draft_vocab_size") or vocab,
        intermediate_size=layer["intermediate_size"],
        num_layers=layer.get("num_hidden_layers") or 1,
        num_heads=heads,
        num_kv_heads=layer.get("num_key_value_heads") or heads,
        head_dim=layer.get("head_dim") or hidden // heads,
        hidden_act=layer.get("hidden_act", "silu"),
        rms_norm_eps=layer.get("rms_norm_eps", 1e-6),
        max_position_embeddings=layer.get("max_position_embeddings", 2048),
        rope={key: layer[key] for key in _ROPE_KEYS if layer.get(key) is not None},
        feature_layers=feature_layers,
        **{
            name: bool(flags.get(name, False))
            for name in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
        },
    )
