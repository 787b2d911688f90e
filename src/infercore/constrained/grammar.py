"""`GrammarSpec`, what may be said, and `Grammar`, the same bound to a vocabulary."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from infercore.constrained.bitmask import Bitmask, is_tensor, words_of
from infercore.constrained.budget import Budgets
from infercore.constrained.forced import ForcedTokens
from infercore.constrained.groups import WORDS
from infercore.constrained.limits import Limits
from infercore.constrained.loops import loops as c
from infercore.constrained.machine import Machine
from infercore.constrained.vocabulary import Vocabulary
from infercore.errors import EmptyGrammar

FINAL = 0
"""The state after an end token: only end tokens may follow."""


_RECORDED = 1 << 40  # states above: a config, and the bytes of the undeclared key that is being written


_TRIED = 2000  # tokens that are tried one by one
_FEW = 200  # the same beside a walk without JSON strings, which takes some 100 µs

_KINDS = ("regex", "choices", "json_schema", "tool_calls")


@dataclass(frozen=True)
class GrammarSpec:
    """What `regex`, `json_schema`, `choices` and `tool_calls` return: a grammar without a vocabulary. Hashable.

    Attributes:
        kind: name of the function that made it.
        source: canonical text of its arguments; equal specs have equal kind and source.
    """

    kind: str
    source: str

    def to_json(self) -> str:
        """The spec as text, to be kept or sent elsewhere; `from_json` reads it."""
        return json.dumps({"kind": self.kind, "source": self.source})

    @classmethod
    def from_json(cls, text: str) -> "GrammarSpec":
        """The spec that `to_json` wrote. Raises: ValueError where `text` is none."""
        fields = json.loads(text)
        if not isinstance(fields, dict) or set(fields) != {"kind", "source"} or fields["kind"] not in _KINDS:
            raise ValueError(f"{text[:80]!r} is no grammar; expected what GrammarSpec.to_json() wrote")
        return cls(fields["kind"], fields["source"])

    def bind(self, vocabulary: Vocabulary, *, limits: Limits | None = None, cached: bool = False) -> "Grammar":
        """The grammar over a vocabulary's tokens. Only the first state is computed ahead.

        Args:
            cached: give the same `Grammar` again for an equal spec, as long as the vocabulary lives.
        Raises: EmptyGrammar where no text satisfies it; UnsupportedSchema where it cannot be enforced;
            GrammarLimitError where it passes a limit.
        """
        from infercore.constrained.lower import lower

        if cached:
            key = (self, limits)
            if key not in vocabulary.grammars:
                vocabulary.grammars[key] = self.bind(vocabulary, limits=limits)
            grammar: Grammar = vocabulary.grammars[key]
            return grammar
        machine = Machine(limits or Limits())
        return Grammar(vocabulary, machine, lower(self, machine), self)


class Grammar:
    """Which tokens may come next, by integer states: to fork, to roll back, to search costs nothing.

    States stay valid for the life of the grammar. Masks are computed at a state's first visit and kept, the least
    recently used given up first. Not thread-safe; one lock per grammar is enough.

    Attributes:
        vocabulary: whose tokens.
        start: the state before the first token.
        spec: what this was bound from.
    """

    def __init__(self, vocabulary: Vocabulary, machine: Machine, entry: int, spec: GrammarSpec | None = None) -> None:
        self.vocabulary = vocabulary
        self.machine = machine
        self.spec = spec
        self._resolved: dict[tuple[int, bytes], int] = {}
        machine.use_vocabulary(vocabulary.max_token_size, vocabulary.num_words)
        self._masks: dict[int, npt.NDArray[np.uint32]] = {}
        self._doubts: dict[int, list[int]] = {}
        self._text_masks: dict[tuple[int, bool], tuple[npt.NDArray[np.uint32], int]] = {}
        self._walked: list[tuple[int, npt.NDArray[np.uint32], npt.NDArray[np.int64]]] = []  # the last walks for bodies
        self._no_spec = self._far_spec = -1
        self._within: dict[int, tuple[npt.NDArray[np.uint32], int]] = {}  # by bits: tokens wholly of these characters
        self._max_masks = max(machine.limits.max_mask_bytes // (4 * vocabulary.num_words), 4)
        self._next: dict[tuple[int, int], int] = {}
        self._recorded: list[tuple[int, bytes]] = []
        self._recorded_ids: dict[tuple[int, bytes], int] = {}
        self._last_bitmask: tuple[Any, npt.NDArray[np.uint32], int] = (None, np.zeros((0, 0), np.uint32), 0)
        self._eos = frozenset(vocabulary.eos_token_ids)
        machine.tables.header[c.REACH] = vocabulary.max_length
        config = machine.start(entry)
        if config == 0:
            raise EmptyGrammar(
                "no text at all satisfies this grammar; look for bounds or types that exclude one another"
            )
        self.start = self._state(config, b"")

    # The contract ----------------------------------------------------------------------------------------------------

    def advance(self, state: int, token_id: int) -> int:
        """State after one more token; -1 where the grammar refuses it. An end token leads to a final state.

        Cost: a dictionary lookup for what was asked before, else about 3 µs.
        """
        key = (state, token_id)
        after = self._next.get(key)
        if after is None:
            if len(self._next) > 1_000_000:
                self._next.clear()
            after = self._next[key] = self._advance(state, token_id)
        return after

    def fill_bitmask(
        self,
        states: Sequence[int],
        bitmask: Bitmask,
        *,
        budgets: Sequence[int] | None = None,
    ) -> None:
        """Write the allowed tokens of each state to the rows of `bitmask`, int32 [>= len(states), words] on the CPU.

        Args:
            budgets: for each state, how many tokens may still come: only what can be finished in so many is allowed (an
                end token not counted). Where nothing can, all that the grammar allows is.
        Cost: a copy per state whose mask is kept; else 10 to 500 µs. With budgets some milliseconds more at a state's
            first visit.
        """
        words = self._words_of(bitmask, len(states))
        for row, state in enumerate(states):
            words[row] = self.mask(state)
            if budgets is not None and state != FINAL:
                self._budgets.restrict(state, budgets[row], words[row])

    def min_tokens(self, state: int) -> int:
        """With how many tokens the output can be finished, an end token not counted; 2**30 where none were found.

        What is found is a short way, nearly always a shortest one.
        """
        return 0 if state == FINAL else self._budgets.min_tokens(state)

    def fits(self, state: int, budget: int) -> bool:
        """Whether the output can be finished in `budget` tokens: `min_tokens(state) <= budget`, often much faster."""
        return state == FINAL or self._budgets.fits(state, budget)

    def is_accepting(self, state: int) -> bool:
        """Whether an end token may come next."""
        return state == FINAL or self.machine.accepts(self.config(state))

    def is_finished(self, state: int) -> bool:
        """Whether nothing but an end token may come next."""
        if state == FINAL:
            return True
        config = self.config(state)
        return self.machine.accepts(config) and self.machine.is_end(config)

    def forced_tokens(self, state: int) -> npt.NDArray[np.int32]:
        """The tokens that must come next, int32, perhaps none.

        Text that the grammar forces is tokenised as the vocabulary's `encode` would, and trailing tokens are dropped
        where what may follow could give another cut: so a model that follows never sees tokens it would not have
        produced. Without `encode`, a token is forced where the mask allows exactly one. Where only the end may follow,
        the first end token is forced. A backslash that merely respells a character does not count as a choice.
        """
        return self._forced.tokens(state)

    @cached_property
    def _forced(self) -> ForcedTokens:
        return ForcedTokens(self)

    @cached_property
    def _budgets(self) -> Budgets:
        return Budgets(self)

    def _words_of(self, bitmask: Bitmask, rows: int) -> npt.NDArray[np.uint32]:
        """`bitmask` as words, those of the last call without another look where it is the same tensor."""
        last, words, address = self._last_bitmask
        tensor: Any = bitmask
        if tensor is last and rows <= len(words) and tensor.data_ptr() == address:
            return words
        words = words_of(bitmask, rows, self.vocabulary.vocab_size)
        if is_tensor(bitmask):
            self._last_bitmask = (tensor, words, tensor.data_ptr())
        return words

    # Inside ----------------------------------------------------------------------------------------------------------

    def config(self, state: int) -> int:
        """Where the machine stands in `state`; states that differ in recorded text only share a config."""
        return self._recorded[state - _RECORDED][0] if state >= _RECORDED else state

    def _state(self, config: int, text: bytes) -> int:
        if not self.machine.records_all and not self.machine.status[config] & c.RECORDS:
            return config
        key = (config, text)
        state = self._recorded_ids.get(key)
        if state is None:
            state = self._recorded_ids[key] = _RECORDED + len(self._recorded)
            self._recorded.append(key)
        return state

    def _advance(self, state: int, token_id: int) -> int:
        if token_id in self._eos:
            return FINAL if self.is_accepting(state) else -1
        if state == FINAL or not 0 <= token_id < len(self.vocabulary.token_arrays):
            return -1
        data = self.vocabulary.token_arrays[token_id]
        return self.advance_bytes(state, data) if data.size else -1

    def advance_bytes(self, state: int, data: npt.NDArray[np.uint8]) -> int:
        """State after more bytes of text; -1 where they are refused."""
        if state == FINAL:
            return FINAL if data.size == 0 else -1
        machine, at = self.machine, 0
        if state < _RECORDED and not machine.records_all and not machine.status[state] & c.RECORDS:
            config, at = machine.step(state, data, 0, c.PENDING | c.RECORDS)
            if config == 0:
                return -1
            if at == data.size and not machine.records_all and not machine.status[config] & (c.PENDING | c.RECORDS):
                return config  # as nearly always: nothing to remember
            at = 0
        config, text = self._recorded[state - _RECORDED] if state >= _RECORDED else (state, b"")
        while at < data.size:
            recording = machine.records_all or bool(machine.tables.status[config] & c.RECORDS)
            begin = at
            stop = c.PENDING if recording else c.PENDING | c.RECORDS
            leave = c.RECORDS if recording and not machine.records_all else 0
            config, at = machine.step(config, data, at, stop, leave)
            if config == 0:
                return -1
            status = machine.tables.status[config]
            if recording or machine.records_all:  # or an array was reached in this step whose items are to be kept
                text += data[begin:at].tobytes()
            if status & c.PENDING:
                config = self._resolve(config, text)
                if config == 0:
                    return -1
            if not machine.records_all and not machine.tables.status[config] & c.RECORDS:
                text = b""
        return self._state(config, text)

    def _resolve(self, config: int, text: bytes) -> int:
        """`config` behind a key or item that `text` ends in, put into the memory of its object or array."""
        resolved = self._resolved.get((config, text))
        if resolved is None:
            machine = self.machine
            pairs = [
                (machine.pending_keys[state](text) if state in machine.pending_keys else state, stack)
                for state, stack in machine.pairs(config)
            ]
            resolved = self._resolved[(config, text)] = machine.intern(pairs)
        return resolved

    def has_mask(self, state: int) -> bool:
        """Whether the mask of `state` is kept, so that it costs no more than a copy."""
        return state == FINAL or self.config(state) in self._masks

    def mask(self, state: int) -> npt.NDArray[np.uint32]:
        """Words of the mask of `state`; not to be changed."""
        if state == FINAL:
            return self.vocabulary.eos_mask
        config = self.config(state)
        masks = self._masks
        mask = masks.get(config)
        if mask is None:
            mask, doubts = self._compute_mask(config)
            if len(masks) >= self._max_masks:
                for old in list(masks)[: len(masks) // 4 + 1]:
                    del masks[old]
                    self._doubts.pop(old, None)
            masks[config] = mask
            if doubts is not None:
                self._doubts[config] = doubts
        if config in self._doubts:
            mask = mask.copy()
            for token_id in self._doubts[config]:
                if self.advance(state, token_id) < 0:
                    mask[token_id >> 5] &= ~np.uint32(1 << (token_id & 31))
        return mask

    def _compute_mask(self, config: int) -> tuple[npt.NDArray[np.uint32], list[int] | None]:
        """The mask of a config, and the tokens in it that only the text so far can decide."""
        vocabulary, machine = self.vocabulary, self.machine
        header, status = machine.tables.header, int(machine.tables.status[config])
        if machine.is_plain:
            return self._plain_mask(config), None
        header[c.DOUBTS] = 0
        string = machine.string_at(config)
        trie = vocabulary.closing_trie
        if status & c.FREE:
            mask = vocabulary.body_mask.copy()
            if string is not None and string[1] == header[c.ANY_CONFIG]:
                trie = vocabulary.close_trie
        elif string is not None and (body := self._body_mask(config, *string)) is not None:
            mask = body
        else:
            mask = np.zeros(vocabulary.num_words, np.uint32)
            trie = vocabulary.trie
        machine.walk(trie, config, mask)
        if machine.accepts(config):
            mask |= vocabulary.eos_mask
        if not header[c.DOUBTS]:
            return mask, None
        words = machine.tables.doubts
        doubts = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()
        words[:] = 0
        return mask, doubts

    def _plain_mask(self, config: int) -> npt.NDArray[np.uint32]:
        """The mask of a config of a machine without JSON strings."""
        vocabulary, machine = self.vocabulary, self.machine
        mask, covered, room = self._staying(config, is_alone=machine.is_last_count(config))
        if not covered or not machine.is_last_count(config):
            is_whole = covered and room >= self._within[covered][1]
            rest = vocabulary.groups.between(covered, machine.alphabet, _FEW) if is_whole else None
            if rest is None:
                machine.walk_plain(vocabulary.trie, config, mask, covered, room)
            elif len(rest):
                machine.try_tokens(vocabulary.data, vocabulary.ends, rest, config, mask)
        if machine.accepts(config):
            mask |= vocabulary.eos_mask
        return mask

    def _staying(self, config: int, *, is_alone: bool = False) -> tuple[npt.NDArray[np.uint32], int, int]:
        """A mask of tokens that a repeat in `config` allows, and (bits, bytes): all tokens of such bits, up to so long.

        is_alone: nothing but the repeat and the end may follow, so that these are all tokens that are allowed.
        """
        vocabulary, tables = self.vocabulary, self.machine.tables
        covered, room = int(tables.stay_set[config]), int(tables.stay_room[config])
        if covered:
            known = self._within.get(covered)
            if known is None:
                known = self._within[covered] = (vocabulary.groups.within(covered), vocabulary.groups.longest(covered))
            inside, longest = known
            if room >= longest:
                return inside.copy(), covered, room
            if covered & WORDS == WORDS or is_alone:
                return inside & vocabulary.groups.up_to(room), covered, room
        return np.zeros(vocabulary.num_words, np.uint32), 0, 0  # so few that a walk finds them as fast

    def _body_mask(self, config: int, spec: int, text: int, count: int) -> npt.NDArray[np.uint32] | None:
        """Mask of the tokens that continue a JSON string; None where it must be walked for."""
        vocabulary, machine = self.vocabulary, self.machine
        limit = int(machine.tables.specs[spec, c.MAX_LEN])
        longest = len(vocabulary.body_masks) - 1
        room = longest if limit < 0 else min(limit - count, longest)
        if text == machine.tables.header[c.ANY_CONFIG]:
            return vocabulary.body_masks[room].copy()
        if not machine.is_wide(text):
            return None
        key = (text, limit >= 0)
        known = self._text_masks.get(key)
        if known is None:
            known = self._text_masks[key] = self._text_mask(text, bounded=limit >= 0)
        mask, farthest = known
        if limit < 0 or limit - count >= longest + farthest:
            return mask.copy()
        if farthest == 0:
            return mask & vocabulary.body_masks[room]
        # what leaves room for any ending is allowed; what just fits is tried, unless the walk over all tokens is faster
        sure = limit - count - farthest
        allowed = mask & vocabulary.body_masks[sure] if sure >= 0 else np.zeros_like(mask)
        words = mask & vocabulary.body_masks[room] & ~allowed
        if int(np.bitwise_count(words).sum()) > _TRIED:
            return None
        ids = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        machine.try_tokens(vocabulary.data, vocabulary.ends, ids, config, allowed)
        return allowed

    def ends(self, config: int, wanted: npt.NDArray[np.uint32], *, closing: bool = False) -> npt.NDArray[np.int32]:
        """Config behind each token that is set in `wanted` and allowed in `config`, by token id.

        closing: all of them end a JSON string that `config` is in, so fewer have to be walked.
        """
        trie = self.vocabulary.closing_trie if closing else self.vocabulary.trie
        return self.machine.ends(trie, config, wanted, 32 * self.vocabulary.num_words)

    def farthest(self, text: int) -> int:
        """Code points that a JSON string needs at most to be closed, one token after its text stood in `text`."""
        key = (text, True)
        if key not in self._text_masks:
            self._text_masks[key] = self._text_mask(text, bounded=True)
        return self._text_masks[key][1]

    def _text_mask(self, text: int, *, bounded: bool) -> tuple[npt.NDArray[np.uint32], int]:
        """Mask of the tokens that a JSON string may go on with where its text stands in `text` and no bound is near.

        Also how many code points the text needs at most behind one of them, where `bounded`.
        """
        machine, header = self.machine, self.machine.tables.header
        if (loop := machine.any_loop(text)) >= 0:
            return self.vocabulary.body_mask, machine.distance(machine.start(loop)) if bounded else 0
        if self._no_spec < 0:
            nowhere = machine.node()
            self._no_spec = machine.string_spec(close=nowhere)
            self._far_spec = machine.string_spec(close=nowhere, max_length=1 << 30)
        for other, mask, used in self._walked:
            if machine.same_shape(other, text, used):
                return mask, int(header[c.FARTHEST])
        vocabulary = self.vocabulary
        spec = self._far_spec if bounded else self._no_spec
        config = machine.intern([(machine.string_body(spec, text), 0)])
        header[c.FARTHEST] = 0
        header[c.WALK] += 1
        walk = int(header[c.WALK])
        mask, covered, room = self._staying(text)
        mask &= vocabulary.plain_body_mask
        machine.walk_plain(vocabulary.plain_body_trie, text, mask, covered, room, is_text=True)
        machine.walk(vocabulary.escaped_body_trie, config, mask)
        used = np.flatnonzero(machine.tables.used == walk)
        if used.size <= 256:
            self._walked = [(text, mask, used), *self._walked[:3]]
        return mask, int(header[c.FARTHEST])
