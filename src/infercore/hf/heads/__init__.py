"""Draft heads: EAGLE-1, 2 and 3, and Medusa. They continue the target's own hidden states.

    drafter = EagleDrafter.from_pretrained("path/to/head", model)
    completions = engine.generate(prompts, drafter=drafter)

Files in reading order: `config.py` and `checkpoint.py` (what is on disk), `eagle.py` (the head's arithmetic), `kv.py`
(its keys and values), `expand.py` (a greedy draft as one function), `drafter.py`; `medusa.py`.
"""

from infercore.hf.heads.drafter import EagleDrafter
from infercore.hf.heads.medusa import MedusaDrafter

__all__ = ["EagleDrafter", "MedusaDrafter"]
