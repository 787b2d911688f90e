"""infercore: parts for LLM inference that stand alone, and an engine that puts them behind any Hugging Face causal LM.

    radix         which prefix is already computed, and in which pages
    constrained   which tokens may come next (regex, JSON Schema)
    speculative   propose several tokens, verify once
    kernels       attention and KV kernels: plain torch and Triton
    hf            runs the parts on a transformers model
    lang          programs of prompts

Importing `infercore` loads none of torch, triton or transformers; import the part that you use.
"""

__version__ = "0.1.0.dev0"
