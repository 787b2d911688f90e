"""A toy language: a target whose next token depends on its last one alone, so that the best possible head is known."""

import torch
import transformers as tf

VOCAB, END, OPEN, BETWEEN = 24, 1, 2, 3


def toy_target(hidden: int = 32, layers: int = 3) -> tf.PreTrainedModel:
    """Its layers add nothing; embedding and output embeddings make a random, rather decided table of followers."""
    torch.manual_seed(3)
    config = tf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=OPEN,
        eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.randn(VOCAB, hidden, generator=generator))
        model.lm_head.weight.copy_(torch.randn(VOCAB, hidden, generator=generator) * 0.6)
        model.lm_head.weight[0] = 0  # padding is never said
    return model
