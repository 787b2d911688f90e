"""Notice that a model's weights changed, so that KV of the old ones is not used; and which adapters are on."""

from collections.abc import Iterable
from itertools import chain
from operator import is_
from typing import Any

from torch import nn

Adapters = tuple[str, ...]


class WeightWatch:
    """Notices that a parameter was written in place, replaced, added or removed.

    Writes through `.data` or from another process, and a module whose dicts of parameters or modules are exchanged as
    a whole, cannot be seen: `engine.invalidate()` is for those.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._members_of: list[Iterable[nn.Parameter | nn.Module | None]] = []
        self._members: list[nn.Parameter | nn.Module | None] = []
        self._parameters: list[nn.Parameter] = []
        self._versioned: list[nn.Parameter] = []
        self._seen: tuple[list[int], list[int]] = [], []  # versions and addresses
        self._look()

    def has_changed(self) -> bool:
        """Whether any of that happened since the last call.

        Cost: about 0.4 µs a parameter tensor; walking through all modules, which takes ten times as long, is left for
        the time after one of them got other members.
        """
        members = list(chain.from_iterable(self._members_of))
        if len(members) != len(self._members) or not all(map(is_, members, self._members)):
            parameters, seen = self._parameters, self._seen
            self._look()
            is_same = len(parameters) == len(self._parameters) and all(map(is_, parameters, self._parameters))
            return not is_same or seen != self._seen
        seen, self._seen = self._seen, self._read()
        return seen != self._seen

    def _look(self) -> None:
        """Find all members of all modules, and read the parameters among them."""
        self._members_of = [d.values() for m in self._model.modules() for d in (m._parameters, m._modules)]
        self._members = list(chain.from_iterable(self._members_of))
        self._parameters = list(self._model.parameters())
        self._versioned = [p for p in self._parameters if not p.is_inference()]
        self._seen = self._read()

    def _read(self) -> tuple[list[int], list[int]]:
        return [p._version for p in self._versioned], [p.data_ptr() for p in self._parameters]


def active_adapters(model: nn.Module) -> Adapters:
    """Names of the PEFT adapters that a forward goes through now, those of `disable_adapter` not."""
    if getattr(model, "_hf_peft_config_loaded", False):  # added by the model's own `add_adapter`
        names: Any = model.active_adapters()  # type: ignore[operator]
    else:
        names = getattr(model, "active_adapter", None)  # PeftModel
    if not names:
        return ()
    if any(getattr(module, "disable_adapters", None) is True for module in model.modules()):
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def namespace_of(adapters: Adapters, namespace: Any) -> Any:
    """Where prefixes of a request stand in the prefix cache: those of other adapters are not its own."""
    return ("adapters", adapters, namespace) if adapters else namespace


def moved_namespace(namespace: Any, before: Adapters, after: Adapters) -> Any:
    """What `namespace_of` gives under other adapters, for a namespace that it made under those `before`."""
    return namespace_of(after, namespace[2] if before else namespace)


def base_of(model: Any) -> Any:
    """The transformers model within a `PeftModel`, or `model` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
