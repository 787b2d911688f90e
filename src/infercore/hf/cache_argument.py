"""Under which name a transformers model takes its cache: `cache` since transformers 5.24, `past_key_values` before."""

import inspect
from typing import Any


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """`cache` as a keyword argument of `model(...)` and `model.generate(...)`.

    model.generate(input_ids, **cache_argument(model, cache))
    """
    names = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}
