"""Why a lookup found no more than it did."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infercore.radix import _compiled as c
from infercore.radix.layout import Layout
from infercore.radix.types import Namespace


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `PrefixCache.explain` found out; `str()` of it is a sentence for people.

    num_tokens: tokens asked for. num_matched: tokens that are cached, whole pages.
    num_continuations: pages that follow the matched prefix in the tree.
    num_agreeing: tokens of the next page that agree with the continuation that agrees longest.
    was_evicted: the next page was cached once and has left; only known while its page has not been used again.
    num_matched_elsewhere: what other namespaces would have matched, where that is more than nothing.
    """

    num_tokens: int
    num_matched: int
    page_size: int
    num_continuations: int
    num_agreeing: int
    was_evicted: bool
    num_matched_elsewhere: dict[Namespace, int]

    def __str__(self) -> str:
        rest = self.num_tokens - self.num_matched
        found = f"{self.num_matched} of {self.num_tokens} tokens are cached"
        if rest < self.page_size:
            whole = " (all whole pages are)" if rest else ""
            return f"{found}{whole}."
        if self.was_evicted:
            why = "the next page was cached and has been evicted"
        elif self.num_continuations == 0:
            why = "nothing was ever cached behind them, or it has been evicted since"
        else:
            why = (
                f"of the {self.num_continuations} cached continuations the nearest differs at token "
                f"{self.num_matched + self.num_agreeing}"
            )
            if self.num_agreeing:
                why += f", inside a page of {self.page_size} (only whole pages are shared)"
        elsewhere = "".join(
            f" Namespace {name!r} has {count} of them." for name, count in self.num_matched_elsewhere.items()
        )
        return f"{found}; {why}.{elsewhere}"


def explain_miss(
    layout: Layout, tokens: npt.NDArray[np.int32], num_pages: int, node: int, elsewhere: dict[Namespace, int]
) -> Explanation:
    """The explanation for a lookup of `tokens` that matched `num_pages` pages and ended at `node`. O(pool)."""
    page_size = int(layout.header[c.PAGE_SIZE])
    pool = layout.tokens.reshape(-1, page_size)
    layout.settle()
    parents = layout.fields[c.PARENT, : len(pool)]
    followers = np.flatnonzero(parents == node) if node >= 0 else np.empty(0, np.int64)
    wanted = tokens[num_pages * page_size : (num_pages + 1) * page_size]
    agreeing = 0
    was_evicted = False
    if len(wanted) == page_size:
        if len(followers):
            agreeing = int(np.cumprod(pool[followers] == wanted, axis=1).sum(axis=1).max())
        gone = (layout.fields[c.STATE, : len(pool)] == 0) & (parents == c.ABSENT)
        gone[0] = False
        left = np.flatnonzero(gone)
        was_evicted = bool((pool[left] == wanted).all(axis=1).any()) if wanted.any() else False
    return Explanation(len(tokens), num_pages * page_size, page_size, len(followers), agreeing, was_evicted, elsewhere)
