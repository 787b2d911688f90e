"""Token bytes of the tokenizers there are, and the tables that masks come from."""

import codecs
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.constrained.vocab import VOCABULARY, accepts

from infercore.constrained import Vocabulary, allocate_bitmask, cold_trie, regex
from infercore.constrained import _compiled as c
from infercore.constrained.charsets import cells


class FakeTokenizer:
    """What `from_tokenizer` uses of a Hugging Face tokenizer."""

    eos_token_id = 0
    all_special_ids = (0,)
    added_tokens_decoder: dict = {}

    def __init__(self, names, decoder):
        self._names = {name: i for i, name in enumerate(names)}
        state = json.dumps({"decoder": {"type": decoder}})
        self.backend_tokenizer = type("Backend", (), {"to_str": lambda self: state})()

    def get_vocab(self):
        return self._names

    def encode(self, text, add_special_tokens):
        raise NotImplementedError


def test_byte_level_bpe():
    vocabulary = Vocabulary.from_tokenizer(
        FakeTokenizer(["</s>", "Ġa", "Ċ", "é", "Ã©", "!"], "ByteLevel"), vocab_size=40
    )
    assert vocabulary.token_bytes == (None, b" a", b"\n", b"\xe9", "é".encode(), b"!")
    assert vocabulary.vocab_size == 40


def test_sentence_piece_with_byte_fallback():
    vocabulary = Vocabulary.from_tokenizer(FakeTokenizer(["</s>", "▁a", "<0x0A>", "é", "<0xE9>"], "Sequence"))
    assert vocabulary.token_bytes == (None, b" a", b"\n", "é".encode(), b"\xe9")
    grammar = regex("é\n a").bind(vocabulary)
    state = grammar.start
    for token in (3, 2, 1):
        state = grammar.advance(state, token)
    assert grammar.is_accepting(state)


def class_of(text):
    """Bit of the class of the last byte of `text`."""
    if not _begins_text(text):
        return np.int64(1) << np.int64(c.ODD)
    lead = next(byte for byte in reversed(text) if not 0x80 <= byte < 0xC0)
    return np.int64(1) << c.BYTE_CLASS[lead]


def cell_of(text, ends_token):
    """Bit of the cell of the last character of `text`; none within a character where no token ends."""
    if not _begins_text(text):
        return np.int64(1) << np.int64(c.ODD)
    try:
        return np.int64(1) << np.int64(cells()[ord(text.decode()[-1])])
    except UnicodeDecodeError:
        return np.int64(ends_token) << np.int64(c.PARTIAL)


def _begins_text(data):
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return not re.search(rb"\xed[\xa0-\xbf]$", data)  # the decoder waits for a third byte to refuse a surrogate


@given(st.lists(st.binary(max_size=5) | st.text(max_size=3).map(str.encode), max_size=30))
def test_trie_holds_each_token_once_where_its_path_spells_it(tokens):
    data = np.frombuffer(b"".join(tokens), np.uint8)
    ends = np.cumsum([len(t) for t in tokens], dtype=np.int64)
    order = np.array(sorted(range(len(tokens)), key=lambda i: tokens[i]), np.int32)
    byte, depth, skip, at, ids, classes, tall, own = c.build_trie(data, ends, order, cells())
    path = bytearray()
    spelt = []
    for i in range(len(byte)):
        del path[depth[i] :]
        path.append(byte[i])
        spelt.append(bytes(path))
    found = []
    for i in range(len(byte)):
        del path[depth[i] :]
        path.append(byte[i])
        found += [(bytes(path), t) for t in ids[at[i] : at[i + 1]]]
        inside = [j for j in range(i + 1, len(byte)) if all(depth[k] > depth[i] for k in range(i + 1, j + 1))]
        assert skip[i] == i + 1 + len(inside)
        assert classes[i] == np.bitwise_or.reduce(
            np.array([class_of(spelt[j]) | cell_of(spelt[j], at[j + 1] > at[j]) for j in inside], np.int64)
        )
        assert np.int64(1) << np.int64(own[i]) == cell_of(spelt[i], True)
        assert tall[i] == max((depth[j] - depth[i] for j in inside), default=0)
    assert sorted(found) == sorted((t, i) for i, t in enumerate(tokens) if t)
    cold = cold_trie.build_trie(data, ends, order, cells())
    for array, other in zip(c.build_trie(data, ends, order, cells()), cold, strict=True):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)


string_tokens = st.lists(
    st.sampled_from(
        [
            b"a",
            b'"',
            b"\\",
            b"n",
            b"u",
            b"00e9",
            b"d83d",
            b"de00",
            b"D8",
            b"\xc3",
            b"\xa9",
            b"\xe6",
            b"\x97",
            b"\n",
            b"}",
        ]
    ),
    min_size=1,
    max_size=6,
).map(b"".join)


@settings(max_examples=150)
@given(st.lists(string_tokens, min_size=1, max_size=20))
def test_what_a_token_does_inside_a_string_is_what_the_machine_says(tokens):
    from infercore.constrained import json_schema

    data = np.frombuffer(b"".join(tokens), np.uint8)
    length, close = c.classify_tokens(data, np.cumsum([len(t) for t in tokens], dtype=np.int64))
    grammar = json_schema({"type": "string"}).bind(VOCABULARY)
    opened = grammar.advance_bytes(grammar.start, np.array([0x22], np.uint8))
    for token, count, quote in zip(tokens, length.tolist(), close.tolist(), strict=True):
        before = token if quote < 0 else token[:quote]
        state = grammar.advance_bytes(opened, np.frombuffer(before, np.uint8))
        assert (state >= 0) == (count >= 0), token
        if quote >= 0:
            assert grammar.is_accepting(grammar.advance_bytes(state, np.array([0x22], np.uint8)))
            assert len(json.loads(b'"' + before + b'"')) == count


def test_misuse_says_what_to_do():
    with pytest.raises(ValueError, match="eos_token_ids"):
        Vocabulary([b"a"], eos_token_ids=[7])
    with pytest.raises(ValueError, match="pass at least that"):
        Vocabulary([b"a", b"b"], eos_token_ids=[0], vocab_size=1)
    grammar = regex("a").bind(VOCABULARY)
    with pytest.raises(ValueError, match=r"allocate_bitmask\(2, 330\)"):
        grammar.fill_bitmask([grammar.start] * 2, allocate_bitmask(1, 330))
    with pytest.raises(ValueError, match=r"words|shape"):
        grammar.fill_bitmask([grammar.start], allocate_bitmask(1, 65))
    assert accepts(grammar, "a")
