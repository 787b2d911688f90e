"""A GGUF file of a Llama-shaped SmolLM2 into an ordinary Hugging Face folder."""

import io
import json
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write config, generation config, fp32 safetensors and tokenizer of `gguf` into the new folder `folder`.

    fp32 keeps every dequantised weight as it is; of SmolLM2's, 42% would be rounded in fp16 and 79% in bf16. Tied
    embeddings stay one tensor.

    Raises: ImportError where transformers, gguf or accelerate is missing; whatever transformers raises for a file that
        it cannot read.
    Cost: about 20 s and 1.5 GB of memory for 135 million parameters.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source: dict[str, Any] = {"gguf_file": gguf.name}
    with redirect_stderr(io.StringIO()):  # three progress bars that no option turns off; the caller draws one
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, **source, dtype="float32")
        config = loaded.config
        # A model loaded from GGUF refuses save_pretrained; the same weights under a plain config do not.
        del config.quantization_config
        config.name_or_path = ""
        plain = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
        plain.load_state_dict(loaded.state_dict())
        plain.tie_weights()
        ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        plain.generation_config = GenerationConfig(**ids)
        plain.save_pretrained(folder)

        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(folder)
    _split_digits(folder / "tokenizer.json")


def _split_digits(tokenizer_json: Path) -> None:
    """Put back the pre-tokenizer step that transformers drops: SmolLM2 cuts every digit off before anything else.

    GGUF names that step only as `pre = "smollm"`. Without it two spaces before a number become two tokens, not one.
    """
    content = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    byte_level = content["pre_tokenizer"]
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
    }
    tokenizer_json.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
