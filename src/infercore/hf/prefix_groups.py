"""Which sequences of a step begin with the same pages, so that attention reads those keys once for all of them.

Only on a GPU: the CPU's attention finds that out for itself. Groups change nothing but rounding.

When they pay was measured (`bench/results/shared_prefix.md`: H100, 8B shape, 32 sequences of one row). 1024 shared
tokens of a sequence by itself cost 0.020 ms over 32 layers, half of what memory would need: the cache has them. In a
step with groups 1024 tokens cost 0.045 to 0.095 ms, whether a group of 32, one of 2 or a single sequence reads them,
and the step 0.5 ms beforehand. So members count, not their rows: a group pays from more than three on, and a step
only where few reads are left.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence as Seq

import numpy as np

from infercore.hf.plan import MAX_INTERVALS, PrefixGroups, Rows
from infercore.hf.reserve import Work
from infercore.radix import Sequence

STEP = 128  # tokens: attention shares whole blocks of so many (kernels/tree_attention/triton_plan.py)
MIN_MEMBERS = 8  # of each group: 8 gain, 4 never; nothing between them was measured
MIN_SHARED_BYTES = 6 << 20  # K/V of a layer that the members of each group share: 8 MiB gain, 4 lose
MIN_SAVED_BYTES = 192 << 20  # K/V of a layer that a step need not read: 224 MiB gain, 124 lose
MIN_SHARE = 0.7  # of all K/V that a step reads, need not be read: 0.79 gains, 0.66 does not


def grouping_for(bytes_per_token: int, num_layers: int, page_size: int) -> "PrefixGrouping":
    """The grouping of an engine on a GPU, whose K/V takes so many bytes a token over all layers."""
    return PrefixGrouping(
        page_size,
        min_shared_tokens=MIN_SHARED_BYTES * num_layers // bytes_per_token,
        min_saved_tokens=MIN_SAVED_BYTES * num_layers // bytes_per_token,
    )


class PrefixGrouping:
    """Forms groups, and orders a step's work so that each stands together.

    Looks at pages only when sequences came, went or read prompts since the last step: what two of them share at their
    beginnings does not change while they decode.

    Args:
        page_size: tokens a page.
        min_shared_tokens: that the members of a group begin with alike, of each group.
        min_saved_tokens: keys that need not be read, summed over the sequences, from which a step's groups are formed.
        min_members: sequences of each group, at least 2.
        min_share: the keys that need not be read, as a part of all that the step reads.
    """

    def __init__(
        self,
        page_size: int,
        *,
        min_shared_tokens: int,
        min_saved_tokens: int,
        min_members: int = MIN_MEMBERS,
        min_share: float = MIN_SHARE,
    ) -> None:
        self._page_size = page_size
        self._min_shared_tokens = max(min_shared_tokens, 1)
        self._min_saved_tokens = min_saved_tokens
        self._min_members = max(min_members, 2)
        self._min_share = min_share
        self._known: list[Sequence] = []
        self._order: list[int] = []
        self._groups: list[tuple[int, int]] = []  # members, tokens
        self.num_grouped_steps = 0

    def of(self, work: Work) -> tuple[Work, PrefixGroups | None]:
        """`work` in an order in which groups stand together, and the groups; as it is and None where none pay."""
        if len(work) < self._min_members:
            return work, None
        packed = [rows for _, rows in work]
        if not self._still_holds(packed):
            self._form(packed)
        if not self._groups:
            return work, None
        work = [work[i] for i in self._order]
        starts = [0, *itertools.accumulate(count for count, _ in self._groups)]
        shared = [tokens for _, tokens in self._groups]
        if starts[-1] < len(work):
            starts.append(len(work))
            shared.append(0)
        self.num_grouped_steps += 1
        return work, PrefixGroups(tuple(starts), tuple(shared))

    def _still_holds(self, packed: Seq[Rows]) -> bool:
        if len(packed) != len(self._known):
            return False
        for rows, sequence in zip(packed, self._known, strict=True):
            if rows.sequence is not sequence or len(rows.token_ids) > 1:
                return False
        at = 0
        for count, tokens in self._groups:  # rows that were rolled back are no context any more
            if any(packed[i].sequence.num_tokens < tokens for i in self._order[at : at + count]):
                return False
            at += count
        return True

    def _form(self, packed: Seq[Rows]) -> None:
        self._known = [rows.sequence for rows in packed]
        found: list[tuple[int, list[int], int]] = []  # tokens saved, members, tokens shared
        families: dict[int, list[int]] = defaultdict(list)
        for i, sequence in enumerate(self._known):
            if sequence.num_tokens >= max(STEP, self._min_shared_tokens):
                families[int(sequence.page_ids[0])].append(i)
        for members in families.values():
            if len(members) >= self._min_members:
                found += self._groups_of(members)
        found.sort(key=lambda group: -group[0])
        found = found[: MAX_INTERVALS - 1]
        saved = sum(group[0] for group in found)
        read = sum(sequence.num_tokens for sequence in self._known)
        if saved < max(self._min_saved_tokens, 1) or saved < self._min_share * read:
            self._groups, self._order = [], []
            return
        self._groups = [(len(members), tokens) for _, members, tokens in found]
        order = [i for _, members, _ in found for i in members]
        grouped = set(order)
        self._order = order + [i for i in range(len(packed)) if i not in grouped]

    def _groups_of(self, members: list[int]) -> list[tuple[int, list[int], int]]:
        """The best groups, of enough members and tokens, within sequences that begin with the same page."""
        pages = {i: self._known[i].page_ids[: self._known[i].num_tokens // self._page_size] for i in members}
        members = sorted(members, key=lambda i: pages[i].tobytes())  # who shares most stands side by side
        shared = [
            _num_common(pages[i], pages[j]) * self._page_size // STEP * STEP for i, j in itertools.pairwise(members)
        ]
        _, spans = self._best_spans(shared, 0, len(members) - 1)
        return [((last - first) * tokens, members[first : last + 1], tokens) for first, last, tokens in spans]

    def _best_spans(self, shared: list[int], first: int, last: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Of members `first` to `last`, `shared[i]` tokens between i and i + 1: tokens saved, (first, last, tokens).

        All together, or apart where they share least, whichever saves more by groups that are large enough.
        """
        if last - first + 1 < self._min_members:
            return 0, []
        least = min(shared[first:last])
        apart: list[tuple[int, int, int]] = []
        saved = 0
        start = first
        for i in range(first, last + 1):
            if i == last or shared[i] == least:
                more, spans = self._best_spans(shared, start, i)
                saved += more
                apart += spans
                start = i + 1
        together = (last - first) * least
        if least >= self._min_shared_tokens and together >= saved:
            return together, [(first, last, least)]
        return saved, apart


def _num_common(a: np.ndarray, b: np.ndarray) -> int:
    """How many pages two lists begin with alike."""
    count = min(len(a), len(b))
    differs = a[:count] != b[:count]
    return int(np.argmax(differs)) if differs.any() else count
