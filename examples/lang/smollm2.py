"""The model that all examples here run on: SmolLM2-135M-Instruct, as `infercore demo` fetches it."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infercore.demo import ensure_smollm2
from infercore.hf import Engine
from infercore.lang.backends import EngineBackend


def smollm2_backend() -> EngineBackend:
    """An engine on two CPU cores' worth of model; downloads 98 MB at the very first call."""
    folder = ensure_smollm2()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return EngineBackend(Engine(model, AutoTokenizer.from_pretrained(folder)))
