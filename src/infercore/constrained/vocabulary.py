"""`Vocabulary`: the bytes of every token, as tries that a mask is computed from."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from infercore.constrained.charsets import cells
from infercore.constrained.groups import TokenGroups
from infercore.constrained.loops import loops as c
from infercore.constrained.trie import Trie, TrieArrays


class Vocabulary:
    """Bytes per token id. Immutable; build one per tokenizer and share it: its tables take about 0.3 s for 128k tokens.

    Args:
        token_bytes: what each token stands for; None for special tokens, which are never text. Empty tokens are
            never allowed.
        eos_token_ids: tokens that end the output; allowed exactly where the grammar accepts.
        vocab_size: rows of the model's embedding where that is more than `token_bytes`; the rest is masked.
        encode: text to token ids without special tokens; used to find the canonical tokens of forced text. Without
            it a token is forced only where it is the one allowed token.
    Raises: ValueError if an end token is no id, or there is none; or `vocab_size` is smaller than the tokens.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        *,
        eos_token_ids: Sequence[int],
        vocab_size: int | None = None,
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        self.vocab_size = len(token_bytes) if vocab_size is None else int(vocab_size)
        if self.vocab_size < len(token_bytes):
            raise ValueError(f"vocab_size is {vocab_size}, but there are {len(token_bytes)} tokens; pass at least that")
        self.eos_token_ids = tuple(dict.fromkeys(int(i) for i in eos_token_ids))
        if not self.eos_token_ids or not all(0 <= i < self.vocab_size for i in self.eos_token_ids):
            raise ValueError(
                f"eos_token_ids is {list(eos_token_ids)}, expected one or more ids from 0 to {self.vocab_size - 1}"
            )
        ends = set(self.eos_token_ids)
        self.token_bytes = tuple(None if i in ends or not t else bytes(t) for i, t in enumerate(token_bytes))
        self.encode = encode
        self._encoded: dict[str, tuple[int, ...]] = {}
        self._longer: dict[bytes, list[bytes]] = {}
        self.grammars: dict[Any, Any] = {}  # those bound with cached=True, by spec and limits
        flat = [t or b"" for t in self.token_bytes]
        self.data = np.frombuffer(b"".join(flat), np.uint8)
        self.ends = np.cumsum([len(t) for t in flat], dtype=np.int64)
        self.num_words = -(-self.vocab_size // 32)
        self.token_arrays = [np.frombuffer(t, np.uint8) for t in flat]
        self.max_token_size = max((len(t) for t in flat), default=0)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, vocab_size: int | None = None) -> "Vocabulary":
        """The vocabulary of a Hugging Face tokenizer (fast or slow): byte-level BPE, or SentencePiece with byte
        fallback.

        Args:
            vocab_size: rows of the model's embedding (`model.config.vocab_size`), where it is more than the
            tokenizer's.
        """
        names: dict[str, int] = tokenizer.get_vocab()
        size = max(names.values()) + 1
        special = {int(i) for i in tokenizer.all_special_ids}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special |= {int(i) for i, token in added.items() if getattr(token, "special", False)}
        plain = {int(i): str(token) for i, token in added.items() if int(i) not in special}
        to_bytes = _byte_level if _is_byte_level(tokenizer, names) else _sentence_piece
        token_bytes: list[bytes | None] = [None] * size
        for name, index in names.items():
            if index not in special:
                token_bytes[index] = plain[index].encode() if index in plain else to_bytes(name)
        eos = tokenizer.eos_token_id
        if eos is None:
            raise ValueError("the tokenizer has no eos_token_id; set one, or build a Vocabulary from token bytes")
        if vocab_size is not None and vocab_size < size:
            token_bytes = token_bytes[:vocab_size]
        return cls(
            token_bytes,
            eos_token_ids=[eos] if isinstance(eos, int) else list(eos),
            vocab_size=vocab_size,
            encode=_encoder(tokenizer),
        )

    def __repr__(self) -> str:
        return f"Vocabulary(vocab_size={self.vocab_size}, eos_token_ids={list(self.eos_token_ids)})"

    @cached_property
    def trie(self) -> Trie:
        """Trie of all tokens."""
        return self._trie_of(range(len(self.token_bytes)))

    @cached_property
    def _in_string(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        return c.classify_tokens(self.data, self.ends)  # type: ignore[no-any-return]

    @cached_property
    def body_length(self) -> npt.NDArray[np.int32]:
        """Code points that each token adds to a JSON string whose text it continues; -1 for those that cannot.

        A character or an escape that the token only begins counts.
        """
        length, close = self._in_string
        return np.where(close < 0, length, -1).astype(np.int32)

    @cached_property
    def body_mask(self) -> npt.NDArray[np.uint32]:
        """Words of the mask that allows the tokens that continue a JSON string of any text."""
        return self._mask_of(self.body_length >= 0)

    @cached_property
    def clean_mask(self) -> npt.NDArray[np.uint32]:
        """Words of the mask that allows whole characters of a JSON string without an escape."""
        clean = [self.body_length[i] >= 0 and _is_clean(token) for i, token in enumerate(self.token_bytes)]
        return self._mask_of(np.array(clean, np.bool_))

    @cached_property
    def ids_by_bytes(self) -> dict[bytes, int]:
        """The first token id for each text."""
        return {token: i for i, token in reversed(list(enumerate(self.token_bytes))) if token}

    @cached_property
    def has_all_bytes(self) -> bool:
        """Whether every byte is a token of its own."""
        return all(bytes([byte]) in self.ids_by_bytes for byte in range(256))

    @cached_property
    def max_length(self) -> int:
        """No token adds more code points to a text than this."""
        return self.max_token_size

    @cached_property
    def close_trie(self) -> Trie:
        """Trie of the closing quote and what follows it, for tokens that end a JSON string; a node may hold many."""
        length, close = self._in_string
        ids = np.flatnonzero((close >= 0) & (length >= 0)).tolist()
        return self._suffixes([((self.token_bytes[i] or b"")[close[i] :], i) for i in ids])

    @cached_property
    def closing_trie(self) -> Trie:
        """Trie of the tokens that end a JSON string, from the start of a character in it on."""
        length, close = self._in_string
        return self._trie_of(np.flatnonzero((close >= 0) & (length >= 0)).tolist())

    @cached_property
    def body_trie(self) -> Trie:
        """Trie of the tokens that continue a JSON string, from the start of a character in it on."""
        return self._trie_of(np.flatnonzero(self.body_length >= 0).tolist())

    @cached_property
    def _has_backslash(self) -> npt.NDArray[np.bool_]:
        return np.array([b"\\" in (token or b"") for token in self.token_bytes], np.bool_)

    @cached_property
    def plain_body_mask(self) -> npt.NDArray[np.uint32]:
        """Words of the mask that allows the tokens of `body_mask` without a backslash."""
        return self._mask_of((self.body_length >= 0) & ~self._has_backslash)

    @cached_property
    def plain_body_trie(self) -> Trie:
        """Trie of the same."""
        return self._trie_of(np.flatnonzero((self.body_length >= 0) & ~self._has_backslash).tolist())

    @cached_property
    def escaped_body_trie(self) -> Trie:
        """Trie of the tokens of `body_mask` with a backslash."""
        return self._trie_of(np.flatnonzero((self.body_length >= 0) & self._has_backslash).tolist())

    @cached_property
    def body_masks(self) -> list[npt.NDArray[np.uint32]]:
        """Entry n: words of the mask that allows the tokens that add at most n code points to a JSON string."""
        longest = int(self.body_length.max(initial=0))
        return [self._mask_of((self.body_length >= 0) & (self.body_length <= n)) for n in range(longest + 1)]

    @cached_property
    def groups(self) -> TokenGroups:
        """The tokens by the characters they are made of."""
        return TokenGroups(self.data, self.ends, self.num_words)

    def _suffixes(self, suffixes: list[tuple[bytes, int]]) -> Trie:
        data = np.frombuffer(b"".join(s for s, _ in suffixes), np.uint8)
        ends = np.cumsum([len(s) for s, _ in suffixes], dtype=np.int64)
        order = np.array(sorted(range(len(suffixes)), key=lambda j: suffixes[j][0]), np.int32)
        arrays = TrieArrays(*c.build_trie(data, ends, order, cells()))
        token_ids = np.array([i for _, i in suffixes], np.int32)
        return Trie(arrays._replace(token_ids=token_ids[arrays.token_ids]))

    @cached_property
    def eos_mask(self) -> npt.NDArray[np.uint32]:
        """Words of the mask that allows the end tokens only."""
        mask = np.zeros(self.num_words, np.uint32)
        for i in self.eos_token_ids:
            mask[i >> 5] |= np.uint32(1 << (i & 31))
        return mask

    def encoded(self, text: str) -> tuple[int, ...]:
        """What `encode` makes of `text`; what grammars force repeats, so the last texts are remembered."""
        known = self._encoded.get(text)
        if known is None:
            assert self.encode is not None
            if len(self._encoded) >= 10_000:
                self._encoded.clear()
            known = self._encoded[text] = tuple(int(token_id) for token_id in self.encode(text))
        return known

    def encoded_bytes(self, text: bytes) -> tuple[int, ...]:
        """`encoded` of UTF-8; of nothing where it is none."""
        try:
            return self.encoded(text.decode())
        except UnicodeDecodeError:
            return ()

    def shortest_longer(self, prefix: bytes) -> list[bytes]:
        """What tokens that begin with `prefix` go on with: whole characters, the shortest for each first byte."""
        known = self._longer.get(prefix)
        if known is None:
            shortest: dict[int, bytes] = {}
            for token_id in self.longer_than(prefix).tolist():
                more = (self.token_bytes[token_id] or b"")[len(prefix) :]
                if len(more) < len(shortest.get(more[0], more + b"0")) and _is_utf8(more):
                    shortest[more[0]] = more
            if len(self._longer) >= 10_000:
                self._longer.clear()
            known = self._longer[prefix] = list(shortest.values())
        return known

    @cached_property
    def _in_order(self) -> tuple[list[bytes], npt.NDArray[np.int64]]:
        """Tokens in the order of their bytes, and their ids; tokens without text left out."""
        tokens = self.token_bytes
        order = sorted((i for i, token in enumerate(tokens) if token), key=lambda i: tokens[i] or b"")
        return [tokens[i] or b"" for i in order], np.array(order, np.int64)

    def longer_than(self, prefix: bytes) -> npt.NDArray[np.int64]:
        """Ids of the tokens that begin with `prefix` and go on."""
        tokens, ids = self._in_order
        low = bisect_right(tokens, prefix)
        return ids[low : bisect_left(tokens, prefix + b"\xff" * (self.max_token_size + 1), low)]

    def _mask_of(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
        padded = np.zeros(self.num_words * 32, np.bool_)
        padded[: allowed.shape[0]] = allowed
        return np.packbits(padded, bitorder="little").view(np.uint32).copy()

    def _trie_of(self, token_ids: Sequence[int]) -> Trie:
        tokens = self.token_bytes
        order = sorted((i for i in token_ids if tokens[i]), key=lambda i: tokens[i] or b"")
        return Trie.build(self.data, self.ends, np.array(order, np.int32))


def _is_clean(token: bytes | None) -> bool:
    return token is not None and token != b"" and b"\\" not in token and _is_utf8(token)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Text to token ids without special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)

    def encode(text: str) -> list[int]:
        if backend is not None and backend.truncation is None and backend.padding is None:
            return list(backend.encode(text, add_special_tokens=False).ids)  # 5 times as fast as the way around
        return list(tokenizer.encode(text, add_special_tokens=False))

    return encode


def _is_byte_level(tokenizer: Any, names: dict[str, int]) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return "ByteLevel" in json.dumps(json.loads(backend.to_str()).get("decoder"))
    return "<0x0A>" not in names and any(name.startswith("Ġ") for name in names)


def _byte_level(name: str) -> bytes | None:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in name)
    except KeyError:
        return name.encode()


def _sentence_piece(name: str) -> bytes | None:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("▁", " ").encode()


def _byte_characters() -> dict[str, int]:
    """The printable stand-ins for bytes that byte-level BPE vocabularies are written in."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    table = {chr(byte): byte for byte in shown}
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF_CHARACTER = _byte_characters()
