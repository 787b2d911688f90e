"""Random draft heads in every flavour of checkpoint, for the tiny Llama of `tests/hf/tiny.py`."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.hf.tiny import VOCAB

HIDDEN, HEADS, KV_HEADS, DIM, INNER, DRAFT = 64, 4, 2, 16, 80, 61
_AUTHORS = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "intermediate_size": INNER, "num_hidden_layers": 1, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip


def _speculators(kind: str, layer: dict, **flags) -> dict:
    return {
        "speculators_model_type": kind, "speculators_version": "0.9.0", "architectures": ["Eagle3Speculator"],
        "transformer_layer_config": layer, "draft_vocab_size": DRAFT,
        "speculators_config": {"algorithm": kind, "proposal_methods": [], "default_proposal_method": "greedy",
                               "verifier": {"name_or_path": None, "architectures": ["LlamaForCausalLM"]}},
        **flags,
    }  # fmt: skip


def _llama(**more) -> dict:
    return {**_AUTHORS, "head_dim": DIM, "attention_bias": False, "mlp_bias": False, "rope_theta": 5e4, **more}


LAYERS = (0, 2, 3)
CONFIGS: dict[str, dict] = {
    "eagle1": _AUTHORS,
    "eagle1, no bias": {**_AUTHORS, "bias": False, "rope_theta": 1e6},
    "eagle1, speculators": {**_speculators("eagle", _llama(), layernorms=False, fusion_bias=True)},
    "eagle3": {**_AUTHORS, "draft_vocab_size": DRAFT},
    "eagle3, layers.0": {**_AUTHORS, "draft_vocab_size": DRAFT, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "eagle3, whole vocabulary": {**_AUTHORS, "draft_vocab_size": VOCAB},
    "eagle3, SpecForge": {
        **_llama(), "draft_vocab_size": DRAFT, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [-1, 1, 2]},
    },
    "eagle3, int8": {**_AUTHORS, "draft_vocab_size": DRAFT},
    "speculators": _speculators("eagle3", _llama(), eagle_aux_hidden_state_layer_ids=list(LAYERS)),
    "speculators, norm_before_residual": _speculators("eagle3", _llama(), norm_before_residual=True),
    "speculators, norm_before_fc": _speculators("eagle3", _llama(), norm_before_fc=True, norm_before_residual=True),
    "speculators, 3.1": _speculators("eagle3", _llama(), fc_norm=True, norm_output=True),
    "speculators, qwen3, two layers": _speculators("eagle3", _llama(model_type="qwen3", num_hidden_layers=2)),
}  # fmt: skip
FLAVOURS = list(CONFIGS)


def draft_ids() -> torch.Tensor:
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(5))[:DRAFT].sort().values


def weights(flavour: str) -> dict[str, torch.Tensor]:
    """Random weights under uniform names (`layers.0.*`), float32."""
    config = CONFIGS[flavour]
    layer = config.get("transformer_layer_config", config)
    is_eagle3 = "eagle1" not in flavour
    generator = torch.Generator().manual_seed(11)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    def vector(size: int) -> torch.Tensor:
        return 1 + 0.3 * torch.randn(size, generator=generator)

    tensors = {"fc.weight": matrix(HIDDEN, (3 if is_eagle3 else 2) * HIDDEN)}
    if flavour in ("eagle1", "eagle1, speculators"):
        tensors["fc.bias"] = 0.1 * torch.randn(HIDDEN, generator=generator)
    for index in range(layer["num_hidden_layers"]):
        wide = 2 * HIDDEN if is_eagle3 and index == 0 else HIDDEN
        prefix = f"layers.{index}."
        for name, rows in (("q", HEADS * DIM), ("k", KV_HEADS * DIM), ("v", KV_HEADS * DIM)):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = 2 * matrix(rows, wide)
        tensors[f"{prefix}self_attn.o_proj.weight"] = matrix(HIDDEN, HEADS * DIM)
        if layer["model_type"] == "qwen3":
            tensors |= {f"{prefix}self_attn.{name}_norm.weight": vector(DIM) for name in "qk"}
        tensors |= {f"{prefix}mlp.{name}_proj.weight": matrix(INNER, HIDDEN) for name in ("gate", "up")}
        tensors[f"{prefix}mlp.down_proj.weight"] = matrix(HIDDEN, INNER)
        tensors[f"{prefix}post_attention_layernorm.weight"] = vector(HIDDEN)
        if is_eagle3:
            tensors[f"{prefix}input_layernorm.weight"] = vector(HIDDEN)
            if index == 0:
                tensors[f"{prefix}hidden_norm.weight"] = vector(HIDDEN)
    if is_eagle3:
        tensors["norm.weight"] = vector(HIDDEN)
        tensors["lm_head.weight"] = 3 * matrix(config["draft_vocab_size"], HIDDEN)
        if config["draft_vocab_size"] < VOCAB:
            ids = draft_ids()
            tensors["d2t"] = ids - torch.arange(DRAFT)
            tensors["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, ids, True)
        if config.get("norm_before_fc"):
            tensors["input_norm.weight"] = vector(3 * HIDDEN)
        if config.get("fc_norm"):
            tensors |= {f"fc_norm.{i}.weight": vector(HIDDEN) for i in range(3)}
    return tensors


def write(flavour: str, folder: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A checkpoint of that flavour, named as its makers name it."""
    tensors = dict(tensors or weights(flavour))
    if flavour in ("eagle3", "eagle3, SpecForge", "eagle3, int8"):
        tensors = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    if flavour == "eagle1, speculators":
        tensors = {
            name.replace("fc.", "fusion_fc.").replace("layers.0.", "transformer."): tensor
            for name, tensor in tensors.items()
        }
    if flavour == "eagle3, int8":
        from infercore.hf.heads.checkpoint import int8_rows

        tensors = int8_rows(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[flavour]))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
