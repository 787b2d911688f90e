"""Small vocabularies, and the specification of a mask: try every token."""

import json

import numpy as np

from infercore.constrained import Grammar, Vocabulary, allocate_bitmask

EOS = 1
PIECES = [
    '"', '":', '": ', '": "', '", "', '"}', '"]', '{"', '["', "{}", "[]", ", ", "}, {", '"a', 'a"', '"a": ', "ab",
    "abc", "true", "fal", "null", "12", "1.", "0.5", "-1", "e+", "\\", '\\"', "\\n", "\\u00", "\\ud83d", "\n",
    "  ", "é", "ab\n", 'é"', "日本", '日本"', "🙂",
]  # fmt: skip


def small_vocabulary(*, encode=None) -> Vocabulary:
    """Two special tokens, every byte, common pieces of JSON, and characters split over tokens."""
    pieces = [p.encode() for p in PIECES] + [b"\xe6\x97", b"\xa5", b"\xf0\x9f", b'\x99\x82"', b"a\xe6", b"\xc3"]
    return Vocabulary(
        [None, None, *(bytes([b]) for b in range(256)), *pieces], eos_token_ids=[EOS], vocab_size=330, encode=encode
    )


VOCABULARY = small_vocabulary()


def allowed(grammar: Grammar, state: int) -> set[int]:
    """Token ids that the mask of `state` allows."""
    bitmask = allocate_bitmask(1, grammar.vocabulary.vocab_size)
    grammar.fill_bitmask([state], bitmask)
    bits = np.unpackbits(bitmask.numpy().view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def allowed_one_by_one(grammar: Grammar, state: int) -> set[int]:
    """The same by asking `advance` for every id, those beyond the tokenizer's included."""
    return {token for token in range(grammar.vocabulary.num_words * 32) if grammar.advance(state, token) >= 0}


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether `text` from end to end is in the grammar, byte by byte."""
    state = grammar.advance_bytes(grammar.start, np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8))
    return state >= 0 and grammar.is_accepting(state)


def accepts_value(grammar: Grammar, value) -> bool:
    return accepts(grammar, json.dumps(value, ensure_ascii=False))


def walk(grammar: Grammar, choose, steps: int):
    """States along a random output; `choose(sorted ids)` picks the next token."""
    state = grammar.start
    for _ in range(steps):
        yield state
        ids = sorted(allowed(grammar, state) - {EOS})
        if not ids:
            return
        state = grammar.advance(state, choose(ids))
