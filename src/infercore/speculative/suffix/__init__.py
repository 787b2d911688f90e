"""Drafting from text that was seen before: `automaton.py` (every context and its followers), `drafter.py` (trees)."""

from infercore.speculative.suffix.automaton import SuffixAutomaton
from infercore.speculative.suffix.drafter import SuffixDrafter

__all__ = ["SuffixAutomaton", "SuffixDrafter"]
