"""Which tokens may come next: regexes, choices and JSON Schemas as masks over a vocabulary.

When to use it: the output of a model must parse. A grammar never looks at the model; it gives a bitmask for each state,
and its states are plain ints, so a search, a batch or a draft tree may hold as many as it likes.

    from infercore.constrained import Vocabulary, allocate_bitmask, json_schema

    vocabulary = Vocabulary.from_tokenizer(tokenizer, vocab_size=model.config.vocab_size)
    grammar = json_schema({"type": "array", "items": {"type": "integer"}}).bind(vocabulary)
    bitmask = allocate_bitmask(1, vocabulary.vocab_size)
    grammar.fill_bitmask([grammar.start], bitmask)          # 1 = allowed
    state = grammar.advance(grammar.start, token_id)        # -1 = refused

Reading order: `api.py` (what may be said), `grammar.py` (the contract), `matcher.py`, `vocabulary.py`, `trie.py`,
`machine.py` and `_compiled.py` (the lazy pushdown), `regex_syntax.py`, `regex.py`, `utf8.py`, `schema/` (JSON Schema
to states), `block.py`, `lower.py`, `limits.py`, `bitmask.py`, `batch.py`; `envelope.py` (tool calls), `budget.py` and
`completion.py` (outputs that are whole when their tokens run out), `dot.py`; `adapters.py`, `outlines.py` (engines of
others).
"""

from infercore.constrained.api import choices, json_schema, regex
from infercore.constrained.batch import fill_batch
from infercore.constrained.bitmask import allocate_bitmask
from infercore.constrained.dot import to_dot
from infercore.constrained.envelope import tool_calls
from infercore.constrained.grammar import Grammar, GrammarSpec
from infercore.constrained.limits import Limits
from infercore.constrained.matcher import GrammarMatcher, Matcher
from infercore.constrained.vocabulary import Vocabulary

__all__ = [
    "Grammar",
    "GrammarMatcher",
    "GrammarSpec",
    "Limits",
    "Matcher",
    "Vocabulary",
    "allocate_bitmask",
    "choices",
    "fill_batch",
    "json_schema",
    "regex",
    "to_dot",
    "tool_calls",
]
