"""`ForcedTokens`: what a grammar leaves no choice about, cut into tokens as a model would have seen it.

Text that must come is found byte by byte. Its tokens are those of the vocabulary's `encode`; tokens at its end are
dropped where what may follow could give another cut: where a longer token could span the end, or where the end of the
last token and what follows it make a token of their own (`+"` is one, but `+",` is cut into `+` and `",`).
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from infercore.constrained.grammar import Grammar

_FEW = 16  # tokens that are tried one by one rather than by a mask
_MAX_BYTES = 4096  # of text that is looked ahead
_MAX_KEPT = 100_000
_BACKSLASH = 0x5C


class ForcedTokens:
    """The forced tokens of one grammar, remembered by state."""

    def __init__(self, grammar: "Grammar") -> None:
        self.grammar = grammar
        self._tokens: dict[int, npt.NDArray[np.int32]] = {}
        self._none = np.empty(0, np.int32)
        self._end = np.array(grammar.vocabulary.eos_token_ids[:1], np.int32)

    def tokens(self, state: int) -> npt.NDArray[np.int32]:
        """See `Grammar.forced_tokens`."""
        tokens = self._tokens.get(state)
        if tokens is None:
            if len(self._tokens) >= _MAX_KEPT:
                self._tokens.clear()
            tokens = self._tokens[state] = self._tokens_after(state)
        return tokens

    def _tokens_after(self, state: int) -> npt.NDArray[np.int32]:
        if self.grammar.is_finished(state):
            return self._end
        if self.grammar.vocabulary.encode is None:
            return self._only_token(state)
        text, after = self._text(state)
        return self._cut(state, text, after) if text else self._none

    def _only_token(self, state: int) -> npt.NDArray[np.int32]:
        mask = self.grammar.mask(state)
        if int(np.bitwise_count(mask).sum()) != 1:
            return self._none
        word = int(np.flatnonzero(mask)[0])
        return np.array([word * 32 + int(mask[word]).bit_length() - 1], np.int32)

    def _text(self, state: int) -> tuple[bytes, int]:
        """Bytes that must follow, and the state behind them."""
        grammar, machine = self.grammar, self.grammar.machine
        text, after = bytearray(), state
        while len(text) < _MAX_BYTES:
            byte = machine.forced_byte(grammar.config(after))
            behind = -1 if byte < 0 else grammar.advance_bytes(after, np.array([byte], np.uint8))
            if behind < 0:
                break
            text.append(byte)
            after = behind
        return bytes(text), after

    def _cut(self, state: int, text: bytes, after: int) -> npt.NDArray[np.int32]:
        """Tokens of `text` that stay the same whatever may follow it."""
        whole = _whole_characters(text)
        tokens = list(self.grammar.vocabulary.encoded_bytes(whole))
        starts = np.cumsum([0, *(len(self._bytes(token_id)) for token_id in tokens)]).tolist()
        if self._text_of(tokens) != whole:
            return self._none  # the tokenizer adds or changes something (a leading space, say)
        if len(whole) < len(text):  # a character is begun behind them: what it will be is not known
            return np.array(tokens[:-1], np.int32)
        looked = len(text)  # what may reach past the end from here on has been looked at
        while tokens:
            size, start = len(tokens), starts[len(tokens) - 1]
            if self._spanned(state, text, start, after):
                tokens.pop()
            else:
                self._shorten(tokens, text, range(start + 1, looked), after)
                looked = start + 1
            if len(tokens) == size:
                break
        return np.array(tokens, np.int32)

    def _bytes(self, token_id: int) -> bytes:
        tokens = self.grammar.vocabulary.token_bytes
        return (tokens[token_id] if token_id < len(tokens) else None) or b""

    def _text_of(self, tokens: list[int]) -> bytes:
        return b"".join(map(self._bytes, tokens))

    def _spanned(self, state: int, text: bytes, start: int, after: int) -> bool:
        """Whether a token from `start` could reach past the end of `text` and be allowed."""
        grammar, vocabulary = self.grammar, self.grammar.vocabulary
        if grammar.is_finished(after):
            return False
        before = grammar.advance_bytes(state, np.frombuffer(text[:start], np.uint8))
        if before < 0:
            return True
        tail = text[start:]
        longer = vocabulary.longer_than(tail)
        if longer.size and self._needs_no_escape(after):  # an escape then says what may come as it is
            first = vocabulary.ends[longer - 1] * (longer > 0) + len(tail)
            longer = longer[vocabulary.data[first] != _BACKSLASH]
        if longer.size <= _FEW and not grammar.has_mask(before):
            return any(grammar.advance(before, token_id) >= 0 for token_id in longer.tolist())
        mask = grammar.mask(before)
        return bool((mask[longer >> 5] >> (longer & 31).astype(np.uint32) & 1).any())

    def _shorten(self, tokens: list[int], text: bytes, begins: range, after: int) -> None:
        """Drop the last of `tokens` that are cut otherwise where a token that begins at one of `begins` reaches on.

        `encode` is asked, with the shortest such token of each first byte behind the end: what comes first past the
        end decides, in all but contrived vocabularies.
        """
        grammar, vocabulary = self.grammar, self.grammar.vocabulary
        if grammar.is_finished(after) or not begins:
            return
        row = grammar.machine.row(grammar.config(after))
        if self._needs_no_escape(after):
            row[_BACKSLASH] = 0
        first = max(len(tokens) - 3, 0)  # those before rarely matter, and fewer of them make texts that were met before
        if list(vocabulary.encoded_bytes(self._text_of(tokens[first:]))) != tokens[first:]:
            first = 0
        tail = text[len(self._text_of(tokens[:first])) :]
        tried: set[bytes] = set()
        for begin in begins:
            for more in vocabulary.shortest_longer(text[begin:]):
                if more in tried or not row[more[0]]:
                    continue
                tried.add(more)
                if grammar.advance_bytes(after, np.frombuffer(more, np.uint8)) < 0:
                    continue
                cut = vocabulary.encoded_bytes(tail + more)
                same = 0
                while first + same < len(tokens) and same < len(cut) and tokens[first + same] == cut[same]:
                    same += 1
                if same == 0 and first > 0:
                    first, tail = 0, text
                    cut = vocabulary.encoded_bytes(text + more)
                    while same < len(tokens) and tokens[same] == cut[same]:
                        same += 1
                del tokens[first + same :]

    def _needs_no_escape(self, state: int) -> bool:
        """Whether `state` is in a JSON string none of whose next characters has to be written as an escape."""
        machine = self.grammar.machine
        string = machine.string_at(self.grammar.config(state))
        if string is None:
            return False
        row = machine.row(string[1])
        return not bool(row[:0x20].any() or row[0x22] or row[_BACKSLASH])


def _whole_characters(text: bytes) -> bytes:
    """`text` up to a character that it only begins."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start]
    return text
