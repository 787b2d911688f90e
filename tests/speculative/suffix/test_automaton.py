"""The automaton counts substrings of a growing text."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from infercore.speculative.suffix import SuffixAutomaton


@given(text=st.lists(st.integers(0, 2), max_size=40), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_counts_are_occurrences_however_the_text_came(text: Any, cuts: Any) -> None:
    automaton = SuffixAutomaton(1)
    position, piece = 0, 0
    while position < len(text):
        length = cuts[piece % len(cuts)]
        automaton.extend(np.array(text[position : position + length], np.int32))
        position += length
        piece += 1
    assert automaton.num_tokens == len(text)
    for length in range(1, 7):
        for start in range(len(text) - length + 1):
            word = text[start : start + length]
            assert automaton.count(word) == sum(text[i : i + length] == word for i in range(len(text) - length + 1))
    assert automaton.count([2, 7, 2]) == 0


@given(text=st.lists(st.integers(0, 2), max_size=40))
def test_longest_repeat_is_the_longest_suffix_seen_before(text: Any) -> None:
    automaton = SuffixAutomaton()
    automaton.extend(np.array(text, np.int32))
    longest = max(
        (n for n in range(1, len(text)) if any(text[i : i + n] == text[-n:] for i in range(len(text) - n))), default=0
    )
    assert automaton.longest_repeat() == longest


def test_a_long_text_takes_linear_room() -> None:
    automaton = SuffixAutomaton()
    automaton.extend(np.zeros(5000, np.int32))
    automaton.extend(np.arange(5000, dtype=np.int32))
    assert automaton.size_bytes < 250 * automaton.num_tokens
    assert automaton.count([4998, 4999]) == 1
