"""`infercore warmup`: compiles the CPU loops ahead of time, so that no first request pays for it.

Each step uses a part the way a request does; numba writes what it compiled to its cache on disk. A later process loads
that in a fraction of a second.
"""

import importlib.util
from collections.abc import Callable

import numpy as np

Progress = Callable[[str, float | None], object]

_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["a", "b"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 3},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}


def compile_all(progress: Progress) -> None:
    """Run every step; `progress(what, fraction)` is called before each one. About two minutes on a bare machine."""
    steps: dict[str, Callable[[], None]] = {
        "prefix cache": _prefix_cache,
        "grammars": compile_grammars,
        "drafters": _drafters,
    }
    if importlib.util.find_spec("transformers") is not None:
        steps["engine"] = _engine
    for i, (what, step) in enumerate(steps.items()):
        progress(f"compiling: {what}", i / len(steps))
        step()
    progress("compiled", 1.0)


def _prefix_cache() -> None:
    from infercore.radix import PrefixCache

    cache = PrefixCache(num_pages=16, page_size=4)
    tokens = np.arange(20, dtype=np.int32)
    sequence = cache.open(tokens[:10])
    sequence.append(10)
    sequence.commit(tokens[:10])
    fork = sequence.fork()
    fork.append(6)
    fork.commit(tokens[10:13], rows=[0, 2, 4])
    fork.rollback(1)
    for handle in (sequence, fork):
        handle.insert()
        handle.close()
    with cache.lock(cache.match(tokens)):
        cache.explain(tokens)
    cache.release(cache.allocate(12))
    cache.evict(1)
    cache.invalidate(tokens[:4])
    cache.clear()


def compile_grammars() -> None:
    from infercore.constrained import Vocabulary, allocate_bitmask, json_schema, regex

    words = [bytes([i]) for i in range(256)] + [b'{"name', b'": "', b'"a"', b"true", None]
    vocabulary = Vocabulary(words, eos_token_ids=[len(words) - 1], encode=lambda text: list(text.encode()))
    bitmask = allocate_bitmask(2, vocabulary.vocab_size)
    texts = {
        json_schema(_SCHEMA): b'{"name": "ab", "kind": "a", "sizes": [1, 20]}',
        json_schema({}): b'[{"a": -1.5e3, "b": [null, true]}, "\\u00e9"]',
        json_schema({"type": "string", "pattern": r"^(\S+\s+){0,9}\S+$", "maxLength": 12}): b'"ab cd ef',
        regex(r"[a-z]{2,4}(x|[^y])\d+"): b"abcz12",
    }
    for spec, text in texts.items():
        grammar = spec.bind(vocabulary)
        state = grammar.start
        for byte in text:
            grammar.fill_bitmask([state, grammar.start], bitmask, budgets=[40, 40])
            grammar.forced_tokens(state)
            state = grammar.advance(state, byte)
        grammar.is_accepting(state)
    never = json_schema({"type": "string", "allOf": [{"pattern": "a+$"}, {"not": {"pattern": "^b"}}]}).bind(vocabulary)
    never.fill_bitmask([never.advance(never.start, ord('"'))], bitmask)  # rows that Python makes


def _drafters() -> None:
    from infercore.speculative import (
        Drafter,
        DraftRequest,
        LazyUnion,
        NGramDrafter,
        RecyclingDrafter,
        SuffixDrafter,
        Union,
    )

    tokens = np.array([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], np.int32)
    drafters: list[Drafter] = [NGramDrafter(), SuffixDrafter([tokens]), RecyclingDrafter(16)]
    for drafter in [*drafters, Union(*drafters), LazyUnion(*drafters[1:])]:
        for length in range(8, len(tokens) + 1):
            (tree,) = drafter.propose([DraftRequest(0, tokens[:length], max_nodes=8)])
            tree.ancestor_bits()
            tree.position_ids(0)
            drafter.commit(0, tokens[length - 1 : length])
        drafter.close(0)


def _engine() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from infercore.constrained import Vocabulary, json_schema
    from infercore.hf import Engine
    from infercore.hf.heads.expand import compile_loops
    from infercore.speculative import SpeedController, SuffixDrafter

    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=256,
    )
    vocabulary = Vocabulary([bytes([i]) for i in range(256)] + [None], eos_token_ids=[256])
    state = torch.random.get_rng_state()
    model = LlamaForCausalLM(config).eval()
    engine = Engine(model, vocabulary=vocabulary, num_pages=64, controller=SpeedController())
    prompt = list(b"again and again and again and")
    drafter = SuffixDrafter()
    engine.generate([prompt, prompt[:9]], max_new_tokens=24, drafter=drafter, grammar=json_schema(_SCHEMA))
    engine.generate([prompt], n=2, max_new_tokens=24, drafter=drafter, temperature=1.0, top_p=0.9, seed=0)
    compile_loops()
    torch.random.set_rng_state(state)
