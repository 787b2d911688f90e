"""Grammar engines behind one interface, for `bench/constrained.py`: compile, restart, fill, allows, accept."""

import base64
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ.setdefault("INFERCORE_COLD_START", "wait")  # what is timed here is machine code

from infercore.constrained import Vocabulary, allocate_bitmask, json_schema, regex

Encode = Callable[[str], list[int]]


def load_tiktoken(path: Path) -> tuple[list[bytes | None], int, Encode]:
    """Token bytes, end token and encoder of Llama-3's tokenizer file."""
    import tiktoken

    ranks = {base64.b64decode(a): int(b) for a, b in (line.split() for line in path.read_text().splitlines())}
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    encoding = tiktoken.Encoding("llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    tokens: list[bytes | None] = [None] * (len(ranks) + 256)
    for token, rank in ranks.items():
        tokens[rank] = token
    return tokens, 128009, lambda text: encoding.encode(text, disallowed_special=())


def load_smollm2() -> tuple[list[bytes | None], int, Encode]:
    """The same of SmolLM2's tokenizer."""
    from transformers import AutoTokenizer

    from infercore.demo.fetch import smollm2_path

    path = smollm2_path()
    assert path is not None, "run `infercore demo` once: it fetches SmolLM2"
    vocabulary = Vocabulary.from_tokenizer(AutoTokenizer.from_pretrained(path))
    assert vocabulary.encode is not None
    return list(vocabulary.token_bytes), vocabulary.eos_token_ids[0], vocabulary.encode


def resident_mb() -> float:
    """Memory of this process that is in use now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


class Infercore:
    """Ours."""

    slow = False
    version = "here"
    order = "any"

    def __init__(self, token_bytes: list[bytes | None], eos: int, encode: Encode) -> None:
        self.eos = eos
        self.vocabulary = Vocabulary(token_bytes, eos_token_ids=[eos], encode=encode)
        self.bitmask = allocate_bitmask(1, self.vocabulary.vocab_size)
        self.words = self.bitmask.numpy()[0]

    def compile(self, schema: Any) -> "Infercore":
        self.grammar = json_schema(schema, order=self.order).bind(self.vocabulary)
        self.restart()
        return self

    def compile_regex(self, pattern: str) -> "Infercore":
        self.grammar = regex(pattern).bind(self.vocabulary)
        self.restart()
        return self

    def restart(self) -> None:
        self.state = self.grammar.start

    def fill(self) -> None:
        self.grammar.fill_bitmask([self.state], self.bitmask)

    def allows(self, token_id: int) -> bool:
        return bool(self.words[token_id >> 5] >> (token_id & 31) & 1)

    def accept(self, token_id: int) -> bool:
        self.state = self.grammar.advance(self.state, token_id)
        return self.state >= 0

    def may_end(self) -> bool:
        return self.grammar.is_accepting(self.state)

    def forced(self) -> list[int]:
        return self.grammar.forced_tokens(self.state).tolist()


class InfercoreOrdered(Infercore):
    """Ours, properties in the order in which they are declared, as llguidance and xgrammar have them."""

    order = "declared"


class LLGuidance:
    """llguidance, white space fixed as `json.dumps` writes it."""

    slow = False

    def __init__(self, token_bytes: list[bytes | None], eos: int, encode: Encode) -> None:
        import llguidance
        import llguidance.numpy

        self.module, self.version = llguidance, llguidance.__version__

        class Wrapper:
            eos_token_id = eos
            bos_token_id = None
            tokens = [t if t is not None else b"\xff[%d]" % i for i, t in enumerate(token_bytes)]  # noqa: RUF012
            special_token_ids = [i for i, t in enumerate(token_bytes) if t is None]  # noqa: RUF012

            def __call__(self, text: Any) -> list[int]:
                return encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))

        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapper()))
        self.eos = eos
        self.bitmask = llguidance.numpy.allocate_token_bitmask(1, len(token_bytes))

    def compile(self, schema: Any) -> "LLGuidance":
        text = json.dumps(schema)
        options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        grammar = self.module.LLMatcher.grammar_from_json_schema(text, defaults=options)
        return self._start(grammar)

    def compile_regex(self, pattern: str) -> "LLGuidance":
        return self._start(self.module.LLMatcher.grammar_from_regex(pattern))

    def _start(self, grammar: str) -> "LLGuidance":
        self.start = self.module.LLMatcher(self.tokenizer, grammar, log_level=0)
        if self.start.is_error():
            raise ValueError(self.start.get_error())
        self.restart()
        return self

    def restart(self) -> None:
        self.matcher = self.start.deep_copy()

    def fill(self) -> None:
        self.module.numpy.fill_next_token_bitmask(self.matcher, self.bitmask, 0)

    def allows(self, token_id: int) -> bool:
        return bool(self.bitmask[0, token_id >> 5] >> (token_id & 31) & 1)

    def accept(self, token_id: int) -> bool:
        return bool(self.matcher.consume_token(token_id))

    def may_end(self) -> bool:
        return bool(self.matcher.is_accepting())

    def forced(self) -> list[int]:
        return [] if self.matcher.is_stopped() else list(self.matcher.compute_ff_tokens())


class XGrammar:
    """xgrammar, white space fixed, no threads, no cache."""

    slow = True

    def __init__(self, token_bytes: list[bytes | None], eos: int, encode: Encode) -> None:
        import xgrammar

        self.module, self.version = xgrammar, importlib.metadata.version("xgrammar")
        tokens = [t if t is not None else b"<|special_%d|>" % i for i, t in enumerate(token_bytes)]
        special = [i for i, t in enumerate(token_bytes) if t is None]
        info = xgrammar.TokenizerInfo(tokens, vocab_size=len(tokens), stop_token_ids=[eos])
        self.special = np.array(special)
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.bitmask = xgrammar.allocate_token_bitmask(1, len(tokens))
        self.words = self.bitmask.numpy()[0]
        self.eos = eos

    def compile(self, schema: Any) -> "XGrammar":
        self.grammar = self.compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(", ", ": "), strict_mode=False
        )
        self.restart()
        return self

    def compile_regex(self, pattern: str) -> "XGrammar":
        self.grammar = self.compiler.compile_regex(pattern)
        self.restart()
        return self

    def restart(self) -> None:
        self.matcher = self.module.GrammarMatcher(self.grammar)

    def fill(self) -> None:
        self.matcher.fill_next_token_bitmask(self.bitmask)

    def allows(self, token_id: int) -> bool:
        return bool(self.words[token_id >> 5] >> (token_id & 31) & 1)

    def accept(self, token_id: int) -> bool:
        return bool(self.matcher.accept_token(token_id))

    def may_end(self) -> bool:
        return self.allows(self.eos)


class OutlinesCore:
    """outlines-core: the schema as a regex, its index built ahead. It has no time limit of its own."""

    slow = True

    def __init__(self, token_bytes: list[bytes | None], eos: int, encode: Encode) -> None:
        import outlines_core

        self.module, self.version, self.eos = outlines_core, importlib.metadata.version("outlines-core"), eos
        ids: dict[bytes, list[int]] = {}
        for i, token in enumerate(token_bytes):
            if token:
                ids.setdefault(token, []).append(i)
        self.vocabulary = outlines_core.Vocabulary(eos, ids)
        self.words = np.zeros(-(-len(token_bytes) // 32), np.uint32)

    def compile(self, schema: Any) -> "OutlinesCore":
        from outlines_core.json_schema import build_regex_from_schema

        return self.compile_regex(build_regex_from_schema(json.dumps(schema), whitespace_pattern=r"[ ]?"))

    def compile_regex(self, pattern: str) -> "OutlinesCore":
        self.index = self.module.Index(pattern, self.vocabulary)
        self.restart()
        return self

    def restart(self) -> None:
        self.guide = self.module.Guide(self.index)

    def fill(self) -> None:
        self.guide.write_mask_into(self.words.ctypes.data, len(self.words), 4)

    def allows(self, token_id: int) -> bool:
        return bool(self.words[token_id >> 5] >> (token_id & 31) & 1)

    def accept(self, token_id: int) -> bool:
        self.guide.advance(token_id, return_tokens=False)
        return True

    def may_end(self) -> bool:
        return bool(self.index.is_final_state(self.guide.get_state()))


ENGINES: dict[str, Any] = {
    "infercore": Infercore,
    "infercore-ordered": InfercoreOrdered,
    "llguidance": LLGuidance,
    "xgrammar": XGrammar,
    "outlines-core": OutlinesCore,
}
assert torch  # xgrammar's bitmasks are torch tensors
