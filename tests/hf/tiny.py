"""Tiny random models of many architectures, made in code with a fixed seed."""

from functools import cache

import torch
import transformers as tf

VOCAB = 199
_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 512, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_GATED = {**_COMMON, "intermediate_size": 96, "num_key_value_heads": 2}


def _configs() -> dict[str, tuple[type, dict]]:
    return {
        "llama": (tf.LlamaConfig, _GATED),
        "qwen3": (tf.Qwen3Config, {**_GATED, "head_dim": 24}),
        "gemma3": (
            tf.Gemma3TextConfig,
            {**_GATED, "head_dim": 16, "num_hidden_layers": 4, "sliding_window": 8, "layer_types": [
                "sliding_attention", "full_attention", "sliding_attention", "full_attention"]},
        ),
        "mistral": (tf.MistralConfig, {**_GATED, "sliding_window": 8}),
        "phi3": (tf.Phi3Config, {**_GATED, "sliding_window": 512}),
        "gpt2": (
            tf.GPT2Config,
            {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "pad_token_id": 0,
             "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False},
        ),
        "mixtral": (tf.MixtralConfig, {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2}),
        "qwen3_moe": (
            tf.Qwen3MoeConfig,
            {**_GATED, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
        ),
        "gpt_neox": (tf.GPTNeoXConfig, {**_COMMON, "intermediate_size": 96, "rotary_pct": 0.5}),
        "gpt_oss": (
            tf.GptOssConfig,
            {**_GATED, "head_dim": 16, "num_hidden_layers": 4, "sliding_window": 8, "num_local_experts": 4,
             "num_experts_per_tok": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
        ),
        "gemma2": (
            tf.Gemma2Config,
            {**_GATED, "head_dim": 16, "num_hidden_layers": 4, "sliding_window": 8, "attn_logit_softcapping": 5.0},
        ),
    }  # fmt: skip


ARCHITECTURES = tuple(_configs())


@cache
def tiny_model(name: str) -> tf.PreTrainedModel:
    """A float32 model with untied, large random weights, so that outputs are varied and errors show."""
    config_class, arguments = _configs()[name]
    torch.manual_seed(7)
    model = tf.AutoModelForCausalLM.from_config(config_class(**arguments)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                scale = (2.5 if name == "gpt_neox" else 1.2) / parameter.shape[-1] ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif "sinks" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        head = model.get_output_embeddings().weight
        head.copy_(torch.randn(head.shape, generator=generator) * 0.3)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    ordinary = model.config._attn_implementation
    if getattr(model.config, "attn_logit_softcapping", None):
        ordinary = "eager"  # the default of transformers 5.8, sdpa, leaves the cap out without a word
    model.config._attn_implementation_for_tests = ordinary
    return model


def prompts(num: int = 3, longest: int = 20, seed: int = 3) -> list[list[int]]:
    """Ragged random prompts; the third begins as the first does, so that there is a prefix to share."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [longest, longest - 7, longest - 3, *[longest - 1 - i for i in range(num)]][:num]
    rows = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    if num > 2:
        rows[2][:12] = rows[0][:12]
    return rows


def hf_greedy(model: tf.PreTrainedModel, prompt: list[int], num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """Hugging Face's own greedy output and the logits of every step, with the model's ordinary attention."""
    ids = torch.tensor([prompt], device=model.device)
    before = model.config._attn_implementation
    model.set_attn_implementation(model.config._attn_implementation_for_tests)
    try:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        model.set_attn_implementation(before)
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)
