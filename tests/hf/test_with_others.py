"""The engine with what users have besides a plain model: adapters, quantised layers, pipelines, streamers, tools."""

import copy
import json
from threading import Thread

import pytest
import torch
import transformers
from tests.hf.test_equals_hf import assert_nothing_lost
from tests.hf.tiny import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from infercore.hf import Engine, feed

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13]
NEW = 10
TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}it: {% endif %}"
)


def greedy(model, prompt=PROMPT):
    ids = torch.tensor([prompt])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    return out[0, len(prompt) :].tolist()


def ours(engine, prompt=PROMPT):
    return engine.generate(prompt, max_new_tokens=NEW)[0].token_ids


@pytest.fixture
def model():
    return copy.deepcopy(tiny_model("llama"))


@pytest.fixture
def tokenizer():
    """ASCII characters, one token each, behind a template that shows tools."""
    alphabet = [chr(code) for code in range(33, 127)] + ["\u0120", "\u010a"]  # space and line feed, as bytes are spelt
    ids = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {letter: 3 + i for i, letter in enumerate(alphabet)}
    inner = Tokenizer(models.BPE(ids, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", chat_template=TEMPLATE
    )


@pytest.fixture
def adapted(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config, adapter_name="one")
    adapted.add_adapter("two", config)
    return adapted.eval()


def test_adapters_keep_their_prefixes_apart_and_for_later(adapted):
    engine = Engine(adapted, num_pages=100, page_size=4)
    expected, reused = {}, {}
    for round_ in range(2):
        for name in ("one", "two"):
            adapted.set_adapter(name)
            expected[name] = greedy(adapted)
            before = engine.stats.num_reused_tokens
            assert ours(engine) == expected[name]
            reused[name, round_] = engine.stats.num_reused_tokens - before
    assert expected["one"] != expected["two"]
    assert reused == {("one", 0): 0, ("two", 0): 0, ("one", 1): 8, ("two", 1): 8}
    with adapted.disable_adapter():
        assert greedy(adapted) not in expected.values()
        assert ours(engine) == greedy(adapted)
    assert ours(engine) == expected["two"]
    ids = torch.tensor([PROMPT])
    out = adapted.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, custom_generate=engine
    )
    assert out[0, len(PROMPT) :].tolist() == expected["two"]


@pytest.mark.parametrize("overlap", [False, True])
def test_requests_that_run_while_the_adapter_changes_go_on_with_the_new_one(adapted, overlap):
    engine = Engine(adapted, num_pages=100, page_size=4, overlap=overlap, poison=True)
    adapted.set_adapter("one")
    (handle,) = engine.submit(engine.request(PROMPT, max_new_tokens=NEW))
    for _ in range(4):
        engine.step()
    begun = list(handle.output_ids)
    adapted.set_adapter("two")
    (other,) = engine.submit(engine.request(PROMPT, max_new_tokens=NEW))
    while engine.num_unfinished:
        engine.step()
    assert other.token_ids == greedy(adapted)
    assert handle.token_ids[: len(begun)] == begun
    assert handle.token_ids == begun + greedy(adapted, PROMPT + begun)[: NEW - len(begun)]
    assert_nothing_lost(engine)


def test_an_adapter_that_was_merged_voids_what_was_computed(adapted):
    engine = Engine(adapted, num_pages=100, page_size=4)
    ours(engine)
    adapted.merge_adapter()
    assert ours(engine) == greedy(adapted)


def test_quantised_linear_layers(model):
    """Eight-bit weights in modules of another kind, as quantisation libraries put them in the place of `nn.Linear`."""

    class Int8Linear(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            scale = linear.weight.abs().amax(1, keepdim=True) / 127
            self.register_buffer("codes", (linear.weight / scale).round().to(torch.int8))
            self.register_buffer("scale", scale)

        def forward(self, x):
            return x @ (self.codes.to(x.dtype) * self.scale).T

    for layer in model.model.layers:
        for owner in (layer.self_attn, layer.mlp):
            for name, child in list(owner.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(owner, name, Int8Linear(child).requires_grad_(False))
    ids = torch.tensor([PROMPT])
    assert not torch.allclose(model(ids).logits, tiny_model("llama")(ids).logits, atol=1e-4)
    assert ours(Engine(model)) == greedy(model)


def test_torchao_quantised_linear_layers(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert type(model.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    assert ours(Engine(model)) == greedy(model)


def test_a_pipeline(model, tokenizer):
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": NEW, "do_sample": False, "return_full_text": False}
    expected = pipe("hello", **options)
    engine = Engine(model, tokenizer)
    assert pipe("hello", **options, custom_generate=engine) == expected
    assert engine.stats.num_output_tokens == NEW


def test_a_streamer_gets_the_text_in_pieces_and_an_end_even_after_an_error(model, tokenizer):
    engine = Engine(model, tokenizer)
    ids = tokenizer("hello").input_ids
    expected = tokenizer.decode(greedy(model, ids), skip_special_tokens=True)
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(target=feed, args=(streamer, ids, engine.stream(ids, max_new_tokens=NEW)))
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == expected

    def chunks():
        yield from ()
        raise RuntimeError("planted")

    streamer = transformers.TextIteratorStreamer(tokenizer, timeout=60)
    with pytest.raises(RuntimeError, match="planted"):
        feed(streamer, ids, chunks())
    assert "".join(streamer) == "hello"


def test_a_chat_template_with_tools(model, tokenizer):
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name.
        """
        return city

    messages = [{"role": "user", "content": "Rome?"}]
    ids = tokenizer.apply_chat_template(
        messages, tools=[weather], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    text = tokenizer.decode(ids[0])
    assert json.loads(text.split("\n")[0].removeprefix("tools: "))[0]["function"]["name"] == "weather"
    engine = Engine(model, tokenizer)
    expected = greedy(model, ids[0].tolist())
    assert ours(engine, ids) == expected
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, custom_generate=engine)
    assert out[0, ids.shape[1] :].tolist() == expected
    assert engine.stats.num_reused_tokens > len(text) // 2
