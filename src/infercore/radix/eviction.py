"""Eviction policies: which unlocked leaf goes first. Each is a small frozen record; the compiled tree does the work.

Whatever the policy, only leaves that nobody holds are evicted, page by page from their tails, so a branch is given up
from its end and a shared prefix outlives everything that hangs below it.
"""

from dataclasses import dataclass
from typing import TypeAlias

from infercore.radix import _compiled as c


@dataclass(frozen=True, slots=True)
class LRU:
    """Least recently used first. A use is a match, an insert or an `open` that ended at the page or below it."""


@dataclass(frozen=True, slots=True)
class FIFO:
    """First cached, first out; uses do not count."""


@dataclass(frozen=True, slots=True)
class LFU:
    """Fewest uses first, the least recent of those. A page that becomes a leaf counts the uses of all below it."""


@dataclass(frozen=True, slots=True)
class Priority:
    """Lowest priority first, the least recent of those. A page has the highest priority it was ever inserted with."""


@dataclass(frozen=True, slots=True)
class SLRU:
    """Segmented LRU, its segments bounded in time: a page used again while cached counts as used later than it was.

    protected_factor: by how much later, in multiples of the pool: with 2.0, as if 2 x num_pages pages fewer had been
        computed since. Segments of fixed sizes would need a second order of leaves and do not fit a tree, where the
        prefix of a page must be in no lower segment than the page.
    """

    protected_factor: float = 2.0


@dataclass(frozen=True, slots=True)
class GhostHistory:
    """LRU in which a prefix that was seen before, cached or since evicted, stays for `horizon_tokens`.

    A prompt that never comes back goes as in LRU, after about the pool's size of other tokens. A page that has come
    back once, whether it was still cached or is only remembered, stays until `horizon_tokens` have been computed after
    its last use. Where the pool is larger than the horizon this is LRU exactly. The idea of a history of evicted
    entries is that of 2Q (Johnson and Shasha 1994) and ARC (Megiddo and Modha 2003); here it holds hashes of prefixes,
    and age is counted in computed tokens, so that one number fits pools of all sizes.

    horizon_tokens: how many computed tokens lie between two turns of a conversation at most. The default was chosen on
        the first half of a trace of chat requests; see docs/design.
    history_factor: prefixes remembered, in multiples of the pool, at most the horizon. 24 bytes each.
    """

    horizon_tokens: int = 16_000_000
    history_factor: float = 4.0


Policy: TypeAlias = LRU | FIFO | LFU | SLRU | Priority | GhostHistory


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What the arrays need to know of a policy; see `make_layout`."""

    policy: int
    has_aux: bool = False
    bonus: int = 0
    num_ghosts: int = 0


def settings_of(policy: Policy, num_pages: int, page_size: int) -> PolicySettings:
    """A policy as numbers for a pool of `num_pages` pages. Raises: TypeError for anything that is not a policy."""
    match policy:
        case LRU():
            return PolicySettings(c.LRU)
        case FIFO():
            return PolicySettings(c.FIFO)
        case LFU():
            return PolicySettings(c.LFU, has_aux=True)
        case Priority():
            return PolicySettings(c.PRIORITY, has_aux=True)
        case SLRU(protected_factor):
            if protected_factor < 0:
                raise ValueError(f"protected_factor is {protected_factor}, expected 0 or more")
            return PolicySettings(c.SLRU, has_aux=True, bonus=int(protected_factor * num_pages))
        case GhostHistory(horizon_tokens, history_factor):
            if horizon_tokens < 0 or history_factor < 0:
                raise ValueError(f"horizon {horizon_tokens}, factor {history_factor}; expected 0 or more of both")
            horizon = horizon_tokens // page_size
            return PolicySettings(
                c.GHOST,
                has_aux=True,
                bonus=max(0, horizon - num_pages),
                num_ghosts=min(int(history_factor * num_pages), horizon),
            )
    raise TypeError(f"policy is {policy!r}, expected one of the records of infercore.radix.eviction")
