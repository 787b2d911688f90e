"""The functions that make a `GrammarSpec`."""

import json
from collections.abc import Sequence

from infercore.constrained.grammar import GrammarSpec
from infercore.constrained.regex import full_match


def regex(pattern: str) -> GrammarSpec:
    """Texts that `pattern`, in the syntax of Python's `re`, matches from end to end.

    Raises: RegexSyntaxError with the position, for a syntax error or what no automaton can hold (backreferences,
        atomic groups, possessive repeats).
    """
    full_match(pattern)
    return GrammarSpec("regex", pattern)


def choices(options: Sequence[str]) -> GrammarSpec:
    """One of these texts. Raises: ValueError if there are none, TypeError if one is no string."""
    options = list(options)
    if not options:
        raise ValueError("choices() got no options; pass at least one string")
    for option in options:
        if not isinstance(option, str):
            raise TypeError(f"choices() got {option!r}, expected strings")
    return GrammarSpec("choices", json.dumps(options))
