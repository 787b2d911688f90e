"""Models that the packed forward cannot serve are refused, saying why and what still works."""

import pytest
import torch
import transformers as tf
from tests.hf.tiny import tiny_model

from infercore.errors import UnsupportedModel
from infercore.hf import Engine


def small(config_class, **extra):
    arguments = {
        "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config_class(**arguments, **extra)).eval()


def test_a_model_that_never_calls_the_hook_is_refused_by_layer():
    with pytest.raises(UnsupportedModel, match=r"(?s)Nemotron.*GrammarProcessor") as caught:
        Engine(small(tf.NemotronConfig), num_pages=16)
    assert "infercore.radix" in str(caught.value)


def test_a_hybrid_with_linear_attention_is_refused_by_its_layer_type():
    model = small(
        tf.Qwen3NextConfig, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, head_dim=8,
        shared_expert_intermediate_size=16, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="linear_attention"):
        Engine(model, num_pages=16)


def test_an_encoder_decoder_is_refused():
    config = tf.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        Engine(tf.T5ForConditionalGeneration(config), num_pages=16)


@pytest.mark.parametrize("fault", ["skips a layer", "calls twice", "window not passed", "mixes positions"])
def test_planted_model_faults_are_found_and_the_model_left_as_it_was(fault, monkeypatch):
    model = tiny_model("gemma3" if fault == "window not passed" else "llama")
    model.set_attn_implementation("sdpa")
    attention = model.model.layers[1].self_attn if fault != "window not passed" else model.model.layers[0].self_attn
    forward = attention.forward
    if fault == "skips a layer":
        monkeypatch.setattr(attention, "forward", lambda hidden_states, **kwargs: (hidden_states * 0.5, None))
    elif fault == "calls twice":
        monkeypatch.setattr(
            attention, "forward", lambda *args, **kwargs: (forward(*args, **kwargs), forward(*args, **kwargs))[1]
        )
    elif fault == "window not passed":
        monkeypatch.setattr(attention, "sliding_window", None)
    else:
        monkeypatch.setattr(
            attention, "forward", lambda hidden_states, **kwargs: forward(hidden_states.roll(1, 1), **kwargs)
        )
    with pytest.raises(UnsupportedModel, match="layer" if fault != "mixes positions" else "differ"):
        Engine(model, num_pages=16)
    assert model.config._attn_implementation == "sdpa"


def test_training_mode_is_restored_and_dropout_does_not_spoil_the_check():
    model = tiny_model("gpt2")
    model.train()
    Engine(model, num_pages=16)
    assert model.training
    model.eval()
