"""`Limits`: what one grammar may cost before it raises `GrammarLimitError`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one bound grammar. Reaching one raises `GrammarLimitError`; the grammar stays usable where it was.

    Attributes:
        max_states: automaton states (about 50 bytes each).
        max_configs: determinised states (about 1.1 KB each).
        max_depth: nesting of arrays, objects and recursive references in the output.
        max_seconds: time of one operation (compile, one mask, one token).
        max_mask_bytes: masks that are kept; older ones are computed again when they are needed.
        max_alternatives: cases one schema position may split into (oneOf, not, if).
    """

    max_states: int = 1 << 20
    max_configs: int = 1 << 18
    max_depth: int = 2000
    max_seconds: float = 10.0
    max_mask_bytes: int = 256 << 20
    max_alternatives: int = 512
