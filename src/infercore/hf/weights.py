"""Notice that a model's weights changed, so that KV computed with the old ones is not used."""

from typing import Any

from torch import nn


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a parameter is written in place or replaced, or another adapter becomes active.

    Writes through `.data` or from another process cannot be seen: `engine.invalidate()` is for those.
    Cost: about 0.2 µs a parameter tensor.
    """
    versions = 0
    addresses = 0
    for parameter in model.parameters():
        if not parameter.is_inference():
            versions += parameter._version
        addresses = hash((addresses, parameter.data_ptr()))
    return versions, addresses, _active_adapters(model)


def _active_adapters(model: nn.Module) -> tuple[str, ...]:
    if getattr(model, "_hf_peft_config_loaded", False):
        return tuple(sorted(model.active_adapters()))  # type: ignore[operator]
    active = getattr(model, "active_adapter", None)  # PeftModel
    if active is None:
        return ()
    return (active,) if isinstance(active, str) else tuple(active)
