"""The engine: infercore's parts behind any decoder-only causal LM of Hugging Face transformers.

Use it to run a model you have as a transformers object faster and with more control than `generate` gives: prefixes
are computed once, and kept in host memory too if you like, JSON and regexes are enforced, drafts are verified without
changing the output, requests are batched as they come. Not for encoder-decoders, hybrids with linear attention, beams;
`GrammarProcessor` works with those too.

    engine = Engine(model, tokenizer)
    out = model.generate(**inputs, max_new_tokens=200, custom_generate=engine)                  # drop-in
    completions = engine.generate(prompts, grammar=json_schema(Person), drafter=NGramDrafter(), temperature=0.7)
    for chunk in engine.stream(prompt, stop=["\\n\\n"]): print(chunk.text, end="")
    handles = engine.submit(engine.request(prompt)); events = engine.step(); handles[0].cancel()   # for servers

Files in reading order: `request.py` (what is asked and what comes back), `plan.py` and `attention.py` (the packed
forward), `step.py`, `draft.py`, `reserve.py`, `choose.py` and `settle.py` (one step), `flight.py`, `chosen.py`,
`choices.py` and `drawn.py` (steps that overlap), `state.py`, `scheduler.py`, `core.py`, `engine.py`; `graphs.py`,
`step_buffers.py`, `fused_layers.py` and `fused_products.py` (steps as CUDA graphs); `prefix_groups.py` (beginnings that
a batch shares), `host_cache.py` (prefixes in host memory); `weights.py` (what changed, which adapters are on);
`features.py` and `heads/` (EAGLE, Medusa); then `self_check.py`, `custom_generate.py`, `factory.py`, `stream.py`,
`report.py`, `aio.py`, `grammar_processor.py`, `paged_cache.py`, `cache_argument.py`.
"""

from infercore.hf.aio import AsyncEngine
from infercore.hf.cache_argument import cache_argument
from infercore.hf.engine import Engine
from infercore.hf.grammar_processor import GrammarProcessor
from infercore.hf.handle import RequestHandle
from infercore.hf.heads import EagleDrafter, MedusaDrafter
from infercore.hf.model_forward import ModelForward
from infercore.hf.paged_cache import PagedCache
from infercore.hf.request import (
    Completion,
    Event,
    FinishEvent,
    FinishReason,
    Request,
    RequestStats,
    Score,
    TokenEvent,
    TokenLogprobs,
)
from infercore.hf.stats import EngineStats
from infercore.hf.stream import StreamChunk, feed

__all__ = [
    "AsyncEngine",
    "Completion",
    "EagleDrafter",
    "Engine",
    "EngineStats",
    "Event",
    "FinishEvent",
    "FinishReason",
    "GrammarProcessor",
    "MedusaDrafter",
    "ModelForward",
    "PagedCache",
    "Request",
    "RequestHandle",
    "RequestStats",
    "Score",
    "StreamChunk",
    "TokenEvent",
    "TokenLogprobs",
    "cache_argument",
    "feed",
]
