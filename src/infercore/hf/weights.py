"""Notice that a model's weights changed, so that KV of the old ones is not used; and which adapters are on."""

from typing import Any

from torch import nn

Adapters = tuple[str, ...]


def fingerprint(model: nn.Module) -> tuple[int, int]:
    """Changes whenever a parameter is written in place, replaced, added or removed.

    Writes through `.data` or from another process cannot be seen: `engine.invalidate()` is for those.
    Cost: about 0.2 µs a parameter tensor.
    """
    versions = 0
    addresses = 0
    for parameter in model.parameters():
        if not parameter.is_inference():
            versions += parameter._version
        addresses = hash((addresses, parameter.data_ptr()))
    return versions, addresses


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
