"""Errors that infercore raises beside `ValueError` and `TypeError`.

InfercoreError
├── OutOfPages              the KV pool cannot give what was asked for; nothing was changed
├── CacheFileError          a saved cache is damaged, foreign or does not fit; nothing was loaded
├── GrammarError            (also a ValueError) a regex or schema cannot be used as it stands
│   ├── RegexSyntaxError    with `position` in the pattern
│   ├── UnsupportedSchema   with `pointer`, the JSON pointer of the keyword that cannot be enforced
│   ├── EmptyGrammar        no text satisfies it
│   └── GrammarLimitError   a limit on states, bytes, depth or seconds was reached
├── UnsupportedModel        the packed forward cannot serve this model; says which parts still can
├── RequestError            (also a ValueError) a request the engine cannot run as asked
├── CheckpointError         (also a ValueError) a draft head's files are damaged, foreign or of another target
└── FetchError              the demo's model cannot be had; says how to get it by hand

This module imports nothing of ours.
"""


class InfercoreError(Exception):
    """Base class of every error that only infercore raises."""


class OutOfPages(InfercoreError):
    """The page pool is exhausted even after evicting everything that may be evicted.

    Attributes:
        requested: pages that were asked for.
        available: pages that could have been given, evictable ones included.
    """

    def __init__(self, message: str, *, requested: int = 0, available: int = 0) -> None:
        super().__init__(message)
        self.requested = requested
        self.available = available


class CacheFileError(InfercoreError):
    """A file that `PrefixCache.load` was given is not a cache saved by `save`, or does not fit this pool."""


class GrammarError(InfercoreError, ValueError):
    """A grammar cannot be built from what was given."""


class RegexSyntaxError(GrammarError):
    """A pattern that cannot be parsed, or uses syntax an automaton cannot hold.

    Attributes:
        pattern: the whole pattern.
        position: offset in `pattern`, in code points, where the trouble starts.
    """

    def __init__(self, message: str, *, pattern: str, position: int) -> None:
        super().__init__(f"{message} (at position {position} of {pattern!r})")
        self.pattern = pattern
        self.position = position


class UnsupportedSchema(GrammarError):
    """A JSON Schema keyword (or a combination of them) that cannot be enforced exactly.

    Attributes:
        pointer: JSON pointer of the keyword inside the schema, "" for the root.
    """

    def __init__(self, message: str, *, pointer: str) -> None:
        super().__init__(f"{message} (at {pointer or '#'})")
        self.pointer = pointer


class EmptyGrammar(GrammarError):
    """No text at all satisfies a grammar, so there would be no token to choose."""


class GrammarLimitError(GrammarError):
    """A grammar needs more states, bytes, depth or seconds than its limit allows."""


class UnsupportedModel(InfercoreError):
    """A model whose attention does not go through the packed forward, or not correctly."""


class RequestError(InfercoreError, ValueError):
    """A request that the engine cannot run as asked; the message says what to change."""


class CheckpointError(InfercoreError, ValueError):
    """The files of a draft head cannot be used; the message says what they hold and what was expected."""


class FetchError(InfercoreError):
    """The demo's model could not be fetched or is not the published file; the message names the file to get by hand."""


class ProgramError(InfercoreError):
    """A program of prompts failed while it ran; the message begins with the program's own file and line."""


class TraceError(ProgramError):
    """A program cannot be traced: its Python code looks at a value that only running it will bring."""
