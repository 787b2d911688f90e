"""The engine on a model made here: streaming, several requests at once, and `generate` through it.

python examples/engine.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from infercore.constrained import Vocabulary, choices
from infercore.hf import Engine


def main() -> None:
    """Random weights and byte tokens: the text is noise, the calls are the real ones."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=257, eos_token_id=256, pad_token_id=256, **shape)).eval()
    vocabulary = Vocabulary([bytes([i]) for i in range(256)] + [None], eos_token_ids=[256])
    engine = Engine(model, vocabulary=vocabulary)
    prompt = list(b"The best season is ")

    print("a stream:", [chunk.token_ids for chunk in engine.stream(prompt, max_new_tokens=4)])

    handles = [
        *engine.submit(engine.request(prompt, grammar=choices(["spring", "autumn"]))),
        *engine.submit(engine.request(prompt, max_new_tokens=8, temperature=1.0, seed=1)),
    ]
    while engine.num_unfinished:
        engine.step()
    for handle in handles:
        print("a request:", bytes(t for t in handle.completion.token_ids if t < 256), handle.completion.finish_reason)

    inputs = torch.tensor([prompt])
    options = {"max_new_tokens": 8, "do_sample": False}
    ours = model.generate(inputs, custom_generate=engine, **options)
    model.set_attn_implementation("sdpa")
    print("generate gives the same:", torch.equal(ours, model.generate(inputs, **options)))


if __name__ == "__main__":
    main()
