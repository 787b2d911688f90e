"""GGUF to a Hugging Face folder, on a tiny GGUF written here; and the converted SmolLM2 where it is in the cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from infercore.demo import smollm2_path
from infercore.demo.convert import convert_gguf

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

HIDDEN, FEED_FORWARD, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"


def test_weights_survive_bit_for_bit_and_embeddings_stay_tied(tmp_path: Path) -> None:
    path = _write_tiny_gguf(tmp_path)
    convert_gguf(path, tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = loaded.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    model.save_pretrained(tmp_path / "again")  # what a model loaded from GGUF refuses


def test_tokenizer_and_generation_config_come_along(tmp_path: Path) -> None:
    convert_gguf(_write_tiny_gguf(tmp_path), tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_start|>", 128)
    _check_template_and_digits(tokenizer)


@pytest.mark.smollm2
def test_smollm2_speaks_its_chat_format() -> None:
    if (folder := smollm2_path()) is None:
        pytest.skip("SmolLM2 is not in the cache; `infercore demo` fetches it")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    _check_template_and_digits(tokenizer)
    question = [{"role": "user", "content": "What is the capital of France? One sentence."}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def _check_template_and_digits(tokenizer: "transformers.PreTrainedTokenizerBase") -> None:
    ids = tokenizer.apply_chat_template([{"role": "system", "content": "hi"}], return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "<|im_start|>"
    assert ids[tokenizer.convert_ids_to_tokens(ids).index("<|im_end|>")] == 2
    # Two spaces are one token, also before a number; digits stand alone; text comes back as it was.
    assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]
    for text in ("  12", "x = 1,\n\n  y", "é\t7\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def _write_tiny_gguf(folder: Path) -> Path:
    """A two-layer Llama with random fp32 weights, a byte-level vocabulary and one merge (two spaces)."""
    path = folder / "tiny.gguf"
    random = np.random.default_rng(0)
    tokens = [*SPECIALS, *_byte_characters(), "ĠĠ"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    writer.add_add_bos_token(False)
    kv_size = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        for name, shape in {
            "attn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv_size, HIDDEN),
            "attn_v": (kv_size, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (FEED_FORWARD, HIDDEN),
            "ffn_up": (FEED_FORWARD, HIDDEN),
            "ffn_down": (HIDDEN, FEED_FORWARD),
        }.items():
            shapes[f"blk.{layer}.{name}"] = shape
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _byte_characters() -> list[str]:
    """The 256 printable stand-ins for bytes that GPT-2 vocabularies use, as the tokenizers library lists them."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())
